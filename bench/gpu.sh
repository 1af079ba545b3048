#!/usr/bin/env bash
# Decoding and reading prompts on an NVIDIA GPU: bench/decode.cpp, a model of Llama-3-8B's shapes with random weights.
#   bench/gpu.sh pack FOLDER   here, after a build with -DPARALLM_BENCH=ON (x86-64, MLX's CPU wheel): all that the run
#                              needs, with the library of MLX's CUDA wheel, which pip fetches
#   FOLDER/gpu.sh run [N]      there, without network: N (3) rounds, and a Markdown table of medians and spread;
#                              BITS="16 4" leaves out the third kind of weights, MEMORIES= the steps that recall
# The GPU's machine has a driver for CUDA 13 and a python3 with NVIDIA's CUDA 13 wheels (PyTorch brings them).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

pack() {
  local to=$1 program=$here/../build/bin/bench_decode
  . "$here/../tools/versions.sh"
  mkdir -p "$to/lib" "$to/wheel"
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_35_x86_64 \
    -d "$to/wheel" "mlx-cuda-13==$MLX_VERSION"
  python3 -m zipfile -e "$to"/wheel/*.whl "$to/wheel"
  rm -rf "$to"/mlx*
  mv "$to/wheel/mlx" "$to"/wheel/*.libs "$to/" # its library, what that links, the headers that it compiles kernels with
  rm -r "$to/wheel"
  ldd "$program" | awk '$3 ~ /lib(fmt|hwy|spdlog)/ { print $3 }' | xargs -r cp -L -t "$to/lib"
  cp "$program" "$here/gpu.sh" "$to/"
  echo "mlx $MLX_VERSION, $(git -C "$here" log -1 --format='commit %h of %cs')" >"$to/versions"
}

run() {
  local rounds=${1:-3} packages log
  packages=$(python3 -c 'import site; print(site.getsitepackages()[0])')
  LD_LIBRARY_PATH=$here/mlx/lib:$here/lib:$(printf '%s:' "$packages"/nvidia/*/lib)
  export LD_LIBRARY_PATH
  if [ -d "$packages/nvidia/cu13/include" ]; then export CUDA_HOME=$packages/nvidia/cu13; fi
  log=$(mktemp)
  # A round is within one process: each compiles its kernels first, which takes longer than to run them.
  for bits in ${BITS:-16 8 4}; do "$here/bench_decode" "$bits" 256 "$rounds" 1 8 32 64 | tee -a "$log" >&2; done
  local memories=${MEMORIES-10000,100000}
  if [ -n "$memories" ]; then "$here/bench_decode" 16 256 0 "memories=$memories" | tee -a "$log" >&2; fi
  echo "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader), $(cat "$here/versions"); $rounds rounds"
  echo
  python3 - "$log" <<'P'
import collections, re, statistics, sys
kinds, rows, bits = [], collections.defaultdict(list), None
steps = collections.defaultdict(list)
for line in open(sys.argv[1]):
    if found := re.match(r"(\d+) bits, (.*)", line):
        bits = found[1]
    elif found := re.match(r"(batch|prompt) +(\d+).*?: +(\d+) tokens/s", line):
        kind = {"batch": "decode at {}", "prompt": "prompt of {}"}[found[1]].format(found[2])
        kinds += [kind] if kind not in kinds else []
        rows[bits, kind].append(int(found[3]))
    elif found := re.match(r"memories +(\d+) batch +(\d+): +(\S+) ms a step.*?, (\S+) times", line):
        steps[int(found[2])].append((int(found[1]), found[3], found[4]))
print("tokens/s, median (least to most) | " + " | ".join(kinds))
print(" | ".join(["---"] * (len(kinds) + 1)))
for bits in dict.fromkeys(bits for bits, _ in rows):
    cells = (rows[bits, kind] for kind in kinds)
    texts = (f"{statistics.median(c):,.0f} ({min(c):,} to {max(c):,})" if c else "–" for c in cells)
    print(f"{bits} bits | " + " | ".join(texts))
if steps:
    counts = [count for count, _, _ in next(iter(steps.values()))]
    print("\nms a step at 16 bits, by memories that all rows recall | " + " | ".join(f"{count:,}" for count in counts))
    print(" | ".join(["---"] * (len(counts) + 1)))
    for batch, cells in steps.items():
        print(f"batch of {batch} | " + " | ".join(f"{time} ({times}x)" for _, time, times in cells))
P
}

case ${1:-} in
  pack) pack "${2:?a folder}" ;;
  run) run "${2:-3}" ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
