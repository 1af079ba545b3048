# What src/hub/ needs, libcurl, and src/base/, OpenSSL's hashes. Homebrew keeps its OpenSSL where CMake does not look.
if(APPLE AND NOT OPENSSL_ROOT_DIR)
  execute_process(COMMAND brew --prefix openssl@3 OUTPUT_VARIABLE OPENSSL_ROOT_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_package(CURL 7.85 REQUIRED)
find_package(OpenSSL 3 REQUIRED COMPONENTS Crypto)
