#!/usr/bin/env bash
# Installs Corral and what its tests need into .venv, as uv.lock lists it; downloads uv if the machine has none. Takes no time if
# nothing has changed.
#
#   ops/bootstrap.sh [GROUP]   also installs one of pyproject.toml's dependency groups
#
# llama.cpp is compiled for CUDA if the machine has both its compiler and a driver, for Metal on Apple silicon, or for
# CORRAL_ACCELERATOR: none, cuda, metal, vulkan or rocm. See docs/gpu.md.
#
# .venv/.corral-synced[-GROUP]   a digest of everything that the environment depends on
# .venv/.corral-accelerator      the accelerator that llama.cpp was compiled for
# .uv/                           uv, if this machine has none, and the log of the last installation
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly UV_VERSION=0.13.9
readonly UV_OLDEST=0.9
readonly GROUP=${1:-}
readonly STAMP=.venv/.corral-synced
readonly GROUP_STAMP=$STAMP${GROUP:+-$GROUP}
readonly ACCELERATOR_STAMP=.venv/.corral-accelerator
readonly LOG=$PWD/.uv/sync.log
# Measured: 420 s of one core for llama.cpp.
readonly COMPILE_CORE_S=420

fail() {
    echo "Error: $1" >&2
    exit 1
}

# Everything that the environment depends on. The path is part of it, because scripts in .venv contain it.
fingerprint() {
    { pwd && echo "$accelerator" && cat uv.lock pyproject.toml ops/bootstrap.sh; } | digest
}

digest() { # macOS has shasum instead of sha256sum
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi
}

cores() {
    nproc 2>/dev/null || sysctl -n hw.ncpu
}

find_nvcc() {
    local candidate
    for candidate in "$(command -v nvcc || true)" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "${CUDA_PATH:+$CUDA_PATH/bin/nvcc}" /usr/local/cuda/bin/nvcc; do
        if [ -x "$candidate" ]; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# A CUDA compiler alone is no reason: without a driver no model runs on CUDA, and compiling for it takes many times as long.
has_nvidia_driver() {
    command -v nvidia-smi >/dev/null
}

# The accelerator that llama.cpp is compiled for, besides the CPU.
find_accelerator() {
    if [ -n "${CORRAL_ACCELERATOR:-}" ]; then
        echo "$CORRAL_ACCELERATOR"
    elif [[ $OSTYPE == darwin* && $HOSTTYPE == arm64 ]]; then
        echo metal
    elif find_nvcc >/dev/null && has_nvidia_driver; then
        echo cuda
    else
        echo none
    fi
}

# ggml's option for an accelerator. uv keeps a build for each: these settings join those of pyproject.toml in its cache key.
build_option() { # build_option ACCELERATOR
    case $1 in
        none) ;;
        cuda) echo GGML_CUDA ;;
        metal) echo GGML_METAL ;;
        vulkan) echo GGML_VULKAN ;;
        rocm) echo GGML_HIP ;;
        *) fail "CORRAL_ACCELERATOR is $1; it must be none, cuda, metal, vulkan or rocm" ;;
    esac
}

why_none() {
    if has_nvidia_driver; then
        echo "there is an NVIDIA driver, but no CUDA compiler (nvcc)"
    elif find_nvcc >/dev/null; then
        echo "there is a CUDA compiler, but no NVIDIA driver (nvidia-smi); CORRAL_ACCELERATOR=cuda compiles for CUDA anyway"
    else
        echo "no NVIDIA driver and no Apple silicon were found"
    fi
}

say_accelerator() {
    local found=" as CORRAL_ACCELERATOR says"
    case ${CORRAL_ACCELERATOR:-found-$accelerator} in
        found-none) echo "It is compiled for the CPU only: $(why_none)." ;;
        found-cuda) echo "It is compiled for CUDA too, which takes longer, with $(find_nvcc)." ;;
        found-metal) echo "It is compiled for Metal too." ;;
        none) echo "It is compiled for the CPU only,$found." ;;
        *) echo "It is compiled for $accelerator too,$found." ;;
    esac
}

require_compiler() {
    local name
    for name in "${CXX:-c++}" g++ clang++; do
        command -v "$name" >/dev/null && return
    done
    fail "llama.cpp must be compiled, and there is no C++ compiler; install one, on Debian with: apt install build-essential"
}

at_least() { # at_least VERSION OLDEST
    [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n1)" = "$2" ]
}

find_uv() {
    local candidate version
    for candidate in "$(command -v uv || true)" "$HOME/.local/bin/uv" .uv/bin/uv .uv/lib/bin/uv; do
        if [ -x "$candidate" ] && version=$("$candidate" --version 2>/dev/null) && at_least "$(echo "$version" | cut -d' ' -f2)" $UV_OLDEST; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Tries three ways, because Debian installs Python without venv and without pip.
fetch_uv() {
    local python
    python=$(command -v python3) || fail "there is no python3; install it, on Debian with: apt install python3 python3-venv"
    echo "Downloading uv $UV_VERSION" >&2
    { "$python" -m venv .uv && .uv/bin/pip install --quiet "uv==$UV_VERSION"; } >"$LOG" 2>&1 ||
        "$python" -m pip install --quiet --target .uv/lib "uv==$UV_VERSION" >>"$LOG" 2>&1 ||
        "$python" ops/fetch_uv.py "$UV_VERSION" .uv/bin >>"$LOG" 2>&1 ||
        fail "uv could not be downloaded: $(tail -n1 "$LOG"); try again with network access, or after apt install python3-venv (log: $LOG)"
}

minutes() { # minutes SECONDS
    if [ "$1" -lt 50 ]; then echo "less than a minute"; else echo "about $((($1 + 30) / 60)) min"; fi
}

# On a terminal, one line that changes in place; otherwise, a line for every tenth of the work.
show() { # show TEXT [STEP]
    if [ -t 2 ]; then
        printf '\r\033[K%s' "$1" >&2
    elif [ "${2:-}" != "$shown" ]; then
        echo "$1" >&2
        shown=${2:-}
    fi
}

show_progress() {
    local step done total elapsed
    step=$(tail -n 50 "$LOG" | grep -oE '^DEBUG \[[0-9]+/[0-9]+\]' | tail -n1 | tr -dc '0-9/') || step=
    if [ -z "$step" ]; then
        [ -n "$compiling_since" ] || show "installing packages" start
        return
    fi
    done=${step%/*} total=${step#*/}
    [ -n "$compiling_since" ] || compiling_since=$SECONDS
    elapsed=$((SECONDS - compiling_since))
    show "compiling llama.cpp: $done of $total, $(minutes $((elapsed * (total - done) / done + 1))) left" $((10 * done / total))
}

explain() {
    if grep -qi 'no space left on device' "$LOG"; then
        fail "the disk is full ($(df -h --output=avail . | tail -n1 | tr -d ' ') free); the environment needs about 3 GB (log: $LOG)"
    elif grep -q 'No interpreter found' "$LOG"; then
        fail "Corral needs Python 3.11 or newer; this machine has $(python3 --version 2>&1) (log: $LOG)"
    elif grep -qiE 'error sending request|failed to fetch|dns error' "$LOG"; then
        fail "the package index could not be reached; check the network and run this again to continue (log: $LOG)"
    fi
    [ "$accelerator" = none ] ||
        echo "CORRAL_ACCELERATOR=none compiles llama.cpp for the CPU only." >&2
    fail "the environment could not be installed: $(grep -vE '^(DEBUG|TRACE)' "$LOG" | grep -v '^ *$' | tail -n1 | sed 's/^ *//') (log: $LOG)"
}

sync() { # sync UV
    local count compile_s nvcc
    if ! compiled; then
        count=$(cores)
        compile_s=$((COMPILE_CORE_S / count + 30))
        echo "Setting up Corral. Once, llama.cpp is compiled for this machine: $(minutes $compile_s) on $count cores." >&2
        say_accelerator >&2
    fi
    # CMake looks for nvcc only on the PATH.
    [ "$accelerator" != cuda ] || ! nvcc=$(find_nvcc) || export CUDACXX=${CUDACXX:-$nvcc}
    # Offline first: if the index sends no caching headers, uv would download and compile packages again that it already has.
    run_uv "$1" --offline || run_uv "$1" || explain
}

run_uv() { # run_uv UV [OPTION]
    compiling_since='' shown=''
    set -m # a separate process group, so that stopping this script also stops the compilers
    UV_PROJECT_ENVIRONMENT=.venv "$1" sync ${2:-} --locked --all-extras ${GROUP:+--group "$GROUP"} ${option:+--config-settings-package "llama-cpp-python:cmake.define.$option=ON"} --compile-bytecode --verbose >"$LOG" 2>&1 </dev/null &
    local pid=$!
    set +m
    trap 'kill -- -'$pid' 2>/dev/null || true; echo >&2; exit 130' INT TERM HUP
    while kill -0 $pid 2>/dev/null; do
        show_progress
        sleep 0.5
    done
    trap - INT TERM HUP
    [ ! -t 2 ] || printf '\r\033[K' >&2
    wait $pid
}

compiled() {
    compgen -G '.venv/lib/python3.*/site-packages/llama_cpp' >/dev/null && [ "$(cat $ACCELERATOR_STAMP 2>/dev/null || echo none)" = "$accelerator" ]
}

accelerator=$(find_accelerator)
option=$(build_option "$accelerator")
[ -x .venv/bin/python ] && [ "$(cat "$GROUP_STAMP" 2>/dev/null)" = "$(fingerprint)" ] && exit
rm -f $STAMP*
compiled || require_compiler
mkdir -p .uv
uv=$(find_uv) || { fetch_uv && uv=$(find_uv) || fail "uv was downloaded but does not run (log: $LOG)"; }
sync "$uv"
echo "$accelerator" >$ACCELERATOR_STAMP
fingerprint | tee $STAMP >"$GROUP_STAMP"
echo "The environment is up to date." >&2
