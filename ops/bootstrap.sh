#!/usr/bin/env bash
# Brings .venv to what uv.lock says: finds or fetches uv, then installs what Corral and its tests need. Takes no time when
# nothing has changed.
#
#   ops/bootstrap.sh [GROUP]   with one of pyproject.toml's dependency groups besides
#
# .venv/.corral-synced[-GROUP]   what the environment was made from
# .uv/                           uv, where this machine has none, and the log of the last installation
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly UV_VERSION=0.13.9
readonly UV_OLDEST=0.9
readonly GROUP=${1:-}
readonly STAMP=.venv/.corral-synced
readonly GROUP_STAMP=$STAMP${GROUP:+-$GROUP}
readonly LOG=$PWD/.uv/sync.log
# Measured: 420 s of one core for llama.cpp.
readonly COMPILE_CORE_S=420

fail() {
    echo "Error: $1" >&2
    exit 1
}

# What the environment depends on. A checkout that was moved counts as another one: scripts in .venv hold its path.
fingerprint() {
    { pwd && cat uv.lock pyproject.toml ops/bootstrap.sh; } | sha256sum
}

require_compiler() {
    local name
    for name in "${CXX:-c++}" g++ clang++; do
        command -v "$name" >/dev/null && return
    done
    fail "llama.cpp has to be compiled and there is no C++ compiler; install one, on Debian with: apt install build-essential"
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

# Three ways, because Debian installs Python without venv and without pip.
fetch_uv() {
    local python
    python=$(command -v python3) || fail "there is no python3; install it, on Debian with: apt install python3 python3-venv"
    echo "Fetching uv $UV_VERSION" >&2
    { "$python" -m venv .uv && .uv/bin/pip install --quiet "uv==$UV_VERSION"; } >"$LOG" 2>&1 ||
        "$python" -m pip install --quiet --target .uv/lib "uv==$UV_VERSION" >>"$LOG" 2>&1 ||
        "$python" ops/fetch_uv.py "$UV_VERSION" .uv/bin >>"$LOG" 2>&1 ||
        fail "uv could not be fetched: $(tail -n1 "$LOG"); with network access, or after apt install python3-venv, try again (log: $LOG)"
}

minutes() { # minutes SECONDS
    if [ "$1" -lt 50 ]; then echo "less than a minute"; else echo "about $((($1 + 30) / 60)) min"; fi
}

# One line that changes in place on a terminal, elsewhere a line for every tenth of the work.
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
        fail "the disk is full ($(df -h --output=avail . | tail -n1 | tr -d ' ') free); the environment takes about 3 GB (log: $LOG)"
    elif grep -q 'No interpreter found' "$LOG"; then
        fail "Corral needs Python 3.11 or newer; this machine has $(python3 --version 2>&1) (log: $LOG)"
    elif grep -qiE 'error sending request|failed to fetch|dns error' "$LOG"; then
        fail "the package index could not be reached; check the network and run this again, it goes on where it was (log: $LOG)"
    fi
    fail "the environment could not be made: $(grep -vE '^(DEBUG|TRACE)' "$LOG" | grep -v '^ *$' | tail -n1 | sed 's/^ *//') (log: $LOG)"
}

sync() { # sync UV
    local cores compile_s
    if ! compgen -G '.venv/lib/python3.*/site-packages/llama_cpp' >/dev/null; then
        cores=$(nproc)
        compile_s=$((COMPILE_CORE_S / cores + 30))
        echo "Setting up Corral. Once, llama.cpp is compiled for this machine: $(minutes $compile_s) on $cores cores." >&2
    fi
    compiling_since='' shown=''
    set -m # a process group of its own, so that stopping us stops its compilers too
    UV_PROJECT_ENVIRONMENT=.venv "$1" sync --locked --all-extras ${GROUP:+--group "$GROUP"} --compile-bytecode --verbose >"$LOG" 2>&1 </dev/null &
    local pid=$!
    set +m
    trap 'kill -- -'$pid' 2>/dev/null || true; echo >&2; exit 130' INT TERM HUP
    while kill -0 $pid 2>/dev/null; do
        show_progress
        sleep 0.5
    done
    trap - INT TERM HUP
    [ ! -t 2 ] || printf '\r\033[K' >&2
    wait $pid || explain
}

[ -x .venv/bin/python ] && [ "$(cat "$GROUP_STAMP" 2>/dev/null)" = "$(fingerprint)" ] && exit
rm -f $STAMP*
compgen -G '.venv/lib/python3.*/site-packages/llama_cpp' >/dev/null || require_compiler
mkdir -p .uv
uv=$(find_uv) || { fetch_uv && uv=$(find_uv) || fail "uv was fetched but does not run (log: $LOG)"; }
sync "$uv"
fingerprint | tee $STAMP >"$GROUP_STAMP"
echo "The environment is up to date." >&2
