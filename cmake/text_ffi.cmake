# rust/text_ffi, a static library, by cargo. Link-time optimization only where PARALLM_LTO says so: it costs minutes.
option(PARALLM_LTO "Build rust/text_ffi with link-time optimization" OFF)
set(TEXT_FFI_TARGET_DIR ${CMAKE_SOURCE_DIR}/rust/text_ffi/target CACHE PATH "cargo's target folder")
find_program(CARGO cargo HINTS $ENV{HOME}/.cargo/bin REQUIRED)
if(PARALLM_LTO)
  set(text_ffi_lib ${TEXT_FFI_TARGET_DIR}/wheel/libtext_ffi.a)
  set(text_ffi_profile wheel)
else()
  set(text_ffi_lib ${TEXT_FFI_TARGET_DIR}/release/libtext_ffi.a)
  set(text_ffi_profile release)
endif()
file(GLOB_RECURSE text_ffi_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/rust/text_ffi/src/*.rs)
add_custom_command(
  OUTPUT ${text_ffi_lib}
  COMMAND ${CARGO} build --profile ${text_ffi_profile} --locked
          --manifest-path ${CMAKE_SOURCE_DIR}/rust/text_ffi/Cargo.toml --target-dir ${TEXT_FFI_TARGET_DIR}
  DEPENDS ${text_ffi_sources} ${CMAKE_SOURCE_DIR}/rust/text_ffi/Cargo.toml ${CMAKE_SOURCE_DIR}/rust/text_ffi/Cargo.lock
  COMMENT "cargo build rust/text_ffi"
  USES_TERMINAL)
add_custom_target(text_ffi_build DEPENDS ${text_ffi_lib})
add_library(text_ffi INTERFACE)
add_dependencies(text_ffi text_ffi_build)
target_link_libraries(text_ffi INTERFACE ${text_ffi_lib} ${CMAKE_DL_LIBS} m)
target_include_directories(text_ffi INTERFACE ${CMAKE_SOURCE_DIR}/rust/text_ffi/include)
if(APPLE)
  target_link_libraries(text_ffi INTERFACE "-framework Security" "-framework CoreFoundation" iconv)
endif()
