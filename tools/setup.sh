#!/usr/bin/env bash
# setup.sh [stores]: installs what the build needs and this machine lacks: system packages, a Rust toolchain, MLX in .venv.
# With `stores` also Java and Maven, for the servers that the tests of memory stores start (tools/stores.sh).
# Asks nothing. Does nothing, in milliseconds, when its stamp says that all is there and it still is.
# PARALLM_BACKEND=cpu|cuda chooses MLX's backend on Linux; left out, an NVIDIA driver that answers means cuda.
# One build serves both: it is made against .venv, and `make serve` puts .venv-cuda's libmlx.so in front where it is.
# (CMake files of the CUDA wheel ask for a CUDA toolkit and cuDNN, which running does not need.)
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/versions.sh

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  say "FAILED: $*"
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

export PATH="${CARGO_HOME:-${HOME:?setup needs a home folder}/.cargo}/bin:$PATH"
system=$(uname -s)
stores=no
[ "${1:-}" != stores ] || stores=yes
stamp=.cache/setup.stamp
[ $stores = no ] || stamp=.cache/setup-stores.stamp
log=.cache/setup.log
driver=no
[ ! -e /proc/driver/nvidia/version ] || driver=yes
key="$(cat tools/setup.sh tools/versions.sh tools/venv.sh | cksum) ${PARALLM_BACKEND:-} $driver"

all_there() {
  local tool
  for tool in c++ cmake ninja cargo curl git .venv/bin/python; do
    have "$tool" || return 1
  done
  [ $stores = no ] || { have java && have mvn; } || return 1
  compgen -G '.venv/lib/python3.*/site-packages/mlx/lib/libmlx.*' >/dev/null
}

# --- system packages -------------------------------------------------------

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif ! have sudo; then
    die "needs root, and there is no sudo; run this as root, then try again: $*"
  elif [ -t 0 ]; then
    sudo "$@"
  else
    sudo -n "$@" || die "sudo asks for a password; run this yourself, then try again: $*"
  fi
}

debian_packages() {
  local boost=libboost-dev
  # Debian 12's plain libboost-dev is 1.74; Boost.Beast's coroutines and Boost.JSON need 1.81.
  if grep -q '^VERSION_ID="12"' /etc/os-release && grep -q '^ID=debian' /etc/os-release; then
    boost=libboost1.81-dev
  fi
  echo g++ cmake ninja-build ccache pkg-config git curl ca-certificates python3 python3-venv \
    "$boost" libhwy-dev libspdlog-dev libfmt-dev libcli11-dev prometheus-cpp-dev doctest-dev \
    libcurl4-openssl-dev libssl-dev libsqlite3-dev libpq-dev libhiredis-dev libfaiss-dev
  [ $stores = no ] || echo openjdk-17-jre-headless maven
}

install_debian() {
  local package missing=()
  for package in $(debian_packages); do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
      missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing system packages (compiler, build tools, C++ libraries): ${missing[*]}"
  as_root apt-get update -qq || say "apt-get update failed; trying with the lists that are there"
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    die "apt-get could not install: ${missing[*]}. mlx_parallm builds on Debian 12 and Ubuntu 24.04 or newer"
  }
}

install_macos() {
  local formula missing=()
  have c++ && xcode-select -p >/dev/null 2>&1 ||
    die "no C++ compiler; run: xcode-select --install, then try again"
  have brew || die "no Homebrew, which brings the C++ libraries; see https://brew.sh, then try again"
  for formula in boost highway spdlog fmt cli11 prometheus-cpp doctest openssl@3 libpq hiredis cmake ninja ccache; do
    brew list --formula "$formula" >/dev/null 2>&1 || missing+=("$formula")
  done
  # The Python of the command line tools is older than MLX's wheels take.
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || missing+=(python)
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing Homebrew formulae (build tools, C++ libraries): ${missing[*]}"
  HOMEBREW_NO_AUTO_UPDATE=1 brew install --quiet "${missing[@]}" >&2 || die "brew could not install: ${missing[*]}"
}

install_system() {
  case $system in
    Darwin) install_macos ;;
    Linux)
      if have apt-get; then
        install_debian
      else
        say "no apt-get here: going on with what is installed; CMake names any library that it does not find"
      fi ;;
    *) die "runs on Linux and macOS; got $system" ;;
  esac
  local tool
  for tool in c++ cmake ninja curl git python3; do
    have "$tool" || die "there is no '$tool' on PATH"
  done
}

# --- Rust ------------------------------------------------------------------

recent_cargo() {
  local version
  version=$(cargo --version 2>/dev/null | awk '{print $2}') && [ -n "$version" ] &&
    [ "$(printf '%s\n' "$RUST_MINIMUM" "$version" | sort -V | head -n 1)" = "$RUST_MINIMUM" ]
}

install_rust() {
  if recent_cargo; then
    return
  fi
  if have rustup; then
    say "installing Rust $RUST_VERSION, for this folder only (its tokenizer needs cargo $RUST_MINIMUM or newer)"
    rustup toolchain install "$RUST_VERSION" --profile minimal >&2 &&
      rustup override set "$RUST_VERSION" >&2 || die "rustup could not install Rust $RUST_VERSION"
  else
    say "installing Rust $RUST_VERSION by rustup into ~/.cargo (the tokenizer needs cargo $RUST_MINIMUM or newer)"
    local installer
    installer=$(mktemp)
    if curl --proto '=https' --tlsv1.2 -fsS --retry 3 -o "$installer" \
      https://static.rust-lang.org/rustup/rustup-init.sh; then
      # The check compares $HOME with root's own home, which differs in many containers.
      RUSTUP_INIT_SKIP_SUDO_CHECK=yes sh "$installer" -y -q --profile minimal --no-modify-path --default-toolchain "$RUST_VERSION" >"$log" 2>&1 ||
        tail -n 30 "$log" >&2
    fi
    rm -f "$installer"
  fi
  recent_cargo || die "no cargo $RUST_MINIMUM or newer could be installed; install Rust by hand (https://rustup.rs), then try again"
}

# --- MLX -------------------------------------------------------------------

backend() {
  if [ "$system" = Darwin ]; then
    echo metal
  elif [ -n "${PARALLM_BACKEND:-}" ]; then
    echo "$PARALLM_BACKEND"
  elif have nvidia-smi && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo cuda
  else
    echo cpu
  fi
}

install_mlx() {
  local packages=("mlx==$MLX_VERSION") which
  which=$(backend)
  case $which in
    metal) ;; # mlx-metal comes with mlx
    cpu | cuda) packages+=("mlx-cpu==$MLX_VERSION") ;;
    *) die "PARALLM_BACKEND is cpu or cuda; got '$which'" ;;
  esac
  tools/venv.sh .venv "${packages[@]}" || die "could not install ${packages[*]} into .venv"
  if [ "$which" = cuda ]; then
    tools/venv.sh .venv-cuda "mlx==$MLX_VERSION" "mlx-cuda-13==$MLX_VERSION" ||
      die "could not install mlx-cuda-13 into .venv-cuda; PARALLM_BACKEND=cpu does without it"
  else
    rm -rf .venv-cuda
  fi
}

if [ "$(cat $stamp 2>/dev/null)" = "$key" ] && all_there; then
  exit 0
fi
mkdir -p .cache
install_system
install_rust
install_mlx
all_there || die "something is still missing after the installation; the lines above say what was tried"
printf '%s\n' "$key" >$stamp
say "all is there"
