#!/usr/bin/env bash
# Decoding and reading prompts on an NVIDIA GPU: bench/decode.cpp, a model of Llama-3-8B's shapes with random weights,
# beside mlx-lm and llama.cpp at the same shapes.
#   bench/gpu.sh pack FOLDER   here, after a build with -DPARALLM_BENCH=ON (x86-64, MLX's CPU wheel): all that the run
#                              needs, with the library of MLX's CUDA wheel and the peers, which pip fetches
#   FOLDER/gpu.sh build        there, without network: llama.cpp and its two models (21 GB), minutes; kept in BUILD
#                              (FOLDER/build). `run` does it where it wasn't done.
#   FOLDER/gpu.sh run [N]      there: N (3) rounds, and a Markdown table of medians and spread. PEERS= leaves out the
#                              peers ("mlx_lm llama.cpp"), BITS="16 4" our third kind of weights, which the peers
#                              aren't asked for, MEMORIES= the steps that recall
#   bench/gpu.sh plot          here again, once the table stands in results/gpu.md: docs/gpu.svg, with `make bench`'s Python
# The GPU's machine has a driver for CUDA 13 and a python3 (3.12) with NVIDIA's CUDA 13 wheels (PyTorch brings them);
# for llama.cpp nvcc, cmake and a C++ compiler, too.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=${BUILD:-$here/build}
llama=$build/llama/bin/llama-batched-bench
peers=${PEERS-mlx_lm llama.cpp}
batches="1 8 32 64"

pack() {
  local to=$1 program=$here/../build/bin/bench_decode
  . "$here/../tools/versions.sh"
  mkdir -p "$to/lib" "$to/wheel"
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_35_x86_64 \
    -d "$to/wheel" "mlx-cuda-13==$MLX_VERSION" "mlx==$MLX_VERSION" "mlx-lm==$MLX_LM_VERSION"
  for wheel in "$to"/wheel/*.whl; do python3 -m zipfile -e "$wheel" "$to/wheel"; done
  rm -rf "$to"/mlx*
  # MLX's library, what that links, the headers that it compiles kernels with, its Python parts
  mv "$to/wheel/mlx" "$to"/wheel/*.libs "$to/"
  # What mlx-lm's Llama imports, under an empty mlx_lm: the whole one imports transformers and all that needs.
  mkdir -p "$to/mlx_lm/models"
  mv "$to"/wheel/mlx_lm/models/{__init__,llama,base,cache,activations,rope_utils}.py "$to/mlx_lm/models/"
  touch "$to/mlx_lm/__init__.py"
  rm -r "$to/wheel"
  pack_llama "$to"
  ldd "$program" | awk '$3 ~ /lib(fmt|hwy|spdlog)/ { print $3 }' | xargs -r cp -L -t "$to/lib"
  cp "$program" "$here"/{gpu.sh,gpu_table.py,decode_mlx_lm.py,random_gguf.py,llama_8b.py} "$to/"
  echo "mlx $MLX_VERSION, mlx-lm $MLX_LM_VERSION, llama.cpp of llama-cpp-python $LLAMA_CPP_PYTHON_VERSION," \
    "$(git -C "$here" log -1 --format='commit %h of %cs')" >"$to/versions"
}

# What llama-batched-bench is built from: 2 MB packed, of 40.
pack_llama() {
  local to=$1 source package
  package=$("$here/llama.sh" source)
  source=llama_cpp_python-$LLAMA_CPP_PYTHON_VERSION/vendor/llama.cpp
  rm -rf "$to/llama.cpp"
  mkdir -p "$to/llama.cpp"
  tar xf "$package" -C "$to/llama.cpp" --strip-components 3 \
    --exclude='.git*' --exclude='ggml/src/ggml-cpu/arch/[!x]*' --exclude=miniaudio.h \
    $(printf -- '--exclude=ggml/src/ggml-%s ' blas cann et hexagon hip metal musa opencl openvino rpc sycl virtgpu \
      vulkan webgpu zdnn zendnn) \
    "$source"/{CMakeLists.txt,LICENSE,cmake,common,ggml,include,src,vendor,tools/CMakeLists.txt,tools/batched-bench}
  sed -i '/add_subdirectory/{/batched-bench/!d}' "$to/llama.cpp/tools/CMakeLists.txt"
}

find_packages() {
  packages=$(python3 -c 'import site; print(site.getsitepackages()[0])')
  LD_LIBRARY_PATH=$here/mlx/lib:$here/lib:$(printf '%s:' "$packages"/nvidia/*/lib)
  export LD_LIBRARY_PATH
  if [ -d "$packages/nvidia/cu13/include" ]; then export CUDA_HOME=$packages/nvidia/cu13; fi
}

# Prints the first of the files that there is.
first_file() {
  local file
  for file in "$@"; do
    if [ -e "$file" ]; then
      echo "$file"
      return
    fi
  done
  return 1
}

# The CUDA toolkit may be one of wheels or of a package manager, in parts. So each library is named by its file: wheels
# have no libcublas.so without number, which CMake looks for, and nvcc may stand alone beside them.
build_llama() {
  local nvcc toolkit library folder file options=() candidates=()
  nvcc=$(first_file "$(command -v nvcc)" "${CUDA_HOME:-}/bin/nvcc" /usr/local/cuda*/bin/nvcc) || true
  if [ -z "$nvcc" ] || ! command -v cmake >/dev/null; then
    echo "no nvcc or no cmake here"
    return 1
  fi
  toolkit=$("$nvcc" --dryrun none.cu 2>&1 | sed -n 's/^#\$ TOP=//p') # wherever links and scripts lead to
  toolkit=$(cd "$toolkit" && pwd -P)
  for library in cudart cublas cublasLt cuda; do
    candidates=()
    for folder in "$toolkit"/{lib64,lib,targets/x86_64-linux/lib}{,/stubs} "$packages"/nvidia/*/lib; do
      candidates+=("$folder/lib$library.so" "$folder/lib$library.so.13")
    done
    if [ $library = cuda ]; then # without stubs, the driver's own
      candidates+=($(ldconfig -p | awk '$1 ~ /^libcuda.so/ { print $NF }')
        {/usr/lib/x86_64-linux-gnu,/usr/local/nvidia/lib64}/libcuda.so.1)
    fi
    file=$(first_file "${candidates[@]}") || continue
    case $library in
      cudart) options+=("-DCUDA_CUDART=$file" "-DCUDA_cudart_LIBRARY=$file") ;;
      cuda) options+=("-DCUDA_cuda_driver_LIBRARY=$file") ;;
      *) options+=("-DCUDA_${library}_LIBRARY=$file") ;;
    esac
  done
  if [ ! -e "$toolkit/include/cublas_v2.h" ]; then # cuBLAS's alone: others may be another version's than nvcc
    mkdir -p "$build/include"
    ln -sf "$packages"/nvidia/*/include/cublas*.h "$build/include/"
    options+=("-DCMAKE_CUDA_FLAGS=-I$build/include")
  fi
  if command -v ninja >/dev/null; then options+=(-G Ninja); fi
  export LIBRARY_PATH=$toolkit/lib${LIBRARY_PATH:+:$LIBRARY_PATH} # nvcc looks in lib64, which wheels don't have
  cmake -S "$here/llama.cpp" -B "$build/llama" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_CUDA=ON \
    -DCMAKE_CUDA_COMPILER="$nvcc" -DCUDAToolkit_ROOT="$toolkit" -DGGML_CUDA_NCCL=OFF -DLLAMA_OPENSSL=OFF \
    -DCMAKE_CUDA_ARCHITECTURES="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)" \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF "${options[@]}" &&
    cmake --build "$build/llama" --parallel "$(nproc)" --target llama-batched-bench
}

# Makes what llama.cpp needs, or takes it out of the peers.
build_peers() {
  local kind
  if [[ " $peers " != *" llama.cpp "* ]]; then return; fi
  mkdir -p "$build"
  if [ ! -x "$llama" ] && ! build_llama >&2; then
    echo "llama.cpp could not be built, and is left out" >&2
    peers=${peers/llama.cpp/}
    return
  fi
  for kind in f16 q4_0; do
    if [ ! -e "$build/$kind.gguf" ]; then python3 "$here/random_gguf.py" "$build/$kind.gguf" "$kind"; fi
  done
}

# All batches twice, of which the second time counts: at the first, kernels are loaded and memory is asked for.
measure() {
  local name=$1 bits=$2 kinds=([16]=f16 [4]=q4_0)
  echo "== $name $bits"
  case $name in
    ours) "$here/bench_decode" "$bits" 256 2 $batches ;;
    mlx_lm) PYTHONPATH=$here timeout 150 python3 "$here/decode_mlx_lm.py" "$bits" $batches $batches ;;
    llama.cpp) # of 64 sequences 304 tokens each
      timeout 150 "$llama" -m "$build/${kinds[bits]}.gguf" -c 19456 -npp 256 -ntg 48 -ngl 99 -fa on \
        -npl "$(tr ' ' , <<<"$batches $batches")"
      ;;
  esac
}

run() {
  local rounds=${1:-3} log bits round i name contenders
  log=$(mktemp)
  build_peers
  for ((round = 0; round < rounds; ++round)); do
    for bits in ${BITS:-16 8 4}; do
      contenders=(ours)
      if [ "$bits" != 8 ]; then contenders+=($peers); fi
      for ((i = 0; i < ${#contenders[@]}; ++i)); do # the order turns from round to round
        name=${contenders[(i + round) % ${#contenders[@]}]}
        measure "$name" "$bits" | tee -a "$log" >&2 || [ "$name" != ours ] # of a peer what it did measure counts
      done
    done
  done
  local memories=${MEMORIES-10000,100000}
  if [ -n "$memories" ]; then "$here/bench_decode" 16 256 0 "memories=$memories" | tee -a "$log" >&2; fi
  echo "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader), $(cat "$here/versions"); $rounds rounds"
  echo
  python3 "$here/gpu_table.py" "$log"
}

case ${1:-} in
  pack) pack "${2:?a folder}" ;;
  build) find_packages && build_peers ;;
  run) find_packages && run "${2:-3}" ;;
  plot)
    cd "$here/.."
    tools/venv.sh .venv-bench -r bench/requirements.txt
    .venv-bench/bin/python bench/plot_gpu.py bench/results/gpu.md docs/gpu.svg
    ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
