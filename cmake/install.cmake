# What `pip install .` takes: the programs, in the Python package's bin/. They find libmlx beside them in site-packages,
# by a relative path, since the folder that CMake saw was of pip's own build environment and is gone at run time.
if(APPLE)
  set(origin "@loader_path")
else()
  set(origin "$ORIGIN")
endif()
foreach(program mlx_parallm_serve mlx_parallm)
  if(TARGET ${program})
    set_target_properties(${program} PROPERTIES INSTALL_RPATH "${origin}/../../mlx/lib")
    install(TARGETS ${program} RUNTIME DESTINATION bin)
  endif()
endforeach()
