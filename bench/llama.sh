#!/usr/bin/env bash
# Builds llama.cpp's server for this machine, from the source that the llama-cpp-python package carries, into
# build/llama: some minutes, once. The last line is the folder of its programs. `bench/llama.sh [python with pip]`
# `bench/llama.sh source` only fetches that package: the last line is its path.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/versions.sh
home=build/llama/$LLAMA_CPP_PYTHON_VERSION
source=$home/llama_cpp_python-$LLAMA_CPP_PYTHON_VERSION.tar.gz
fetch() {
  mkdir -p "$home"
  if [ ! -e "$source" ]; then
    "$1" -m pip download -q --no-deps --no-binary :all: -d "$home" "llama-cpp-python==$LLAMA_CPP_PYTHON_VERSION" >&2
  fi
}
if [ "${1:-}" = source ]; then
  fetch python3
  echo "$PWD/$source"
  exit
fi
if [ ! -x "$home/bin/llama-server" ]; then
  fetch "${1:-python3}"
  tar xf "$source" -C "$home"
  cmake -S "$home"/llama_cpp_python-*/vendor/llama.cpp -B "$home/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DBUILD_SHARED_LIBS=OFF \
    -DCMAKE_RUNTIME_OUTPUT_DIRECTORY="$PWD/$home/bin" >&2
  cmake --build "$home/build" --parallel --target llama-server llama-quantize >&2
fi
echo "$home/bin"
