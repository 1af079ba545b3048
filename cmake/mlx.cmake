# MLX from its Python wheel: the library, headers and CMake files lie in site-packages (on Linux in the backend's wheel).
# MLX_DIR may name the folder; else PARALLM_PYTHON, else the project's .venv, is asked.
if(NOT MLX_DIR)
  if(NOT PARALLM_PYTHON AND SKBUILD)
    set(PARALLM_PYTHON ${Python_EXECUTABLE}) # pip's build environment, which holds the wheel
  elseif(NOT PARALLM_PYTHON)
    set(PARALLM_PYTHON ${CMAKE_SOURCE_DIR}/.venv/bin/python)
  endif()
  execute_process(
    COMMAND ${PARALLM_PYTHON} -m mlx --cmake-dir
    OUTPUT_VARIABLE mlx_folder OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "no mlx wheel under ${PARALLM_PYTHON}: run `make setup` first, or set MLX_DIR")
  endif()
endif()
find_package(MLX 0.32.4 CONFIG REQUIRED PATHS ${mlx_folder} ${mlx_folder}/share/cmake NO_DEFAULT_PATH)
