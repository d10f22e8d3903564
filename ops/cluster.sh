#!/usr/bin/env bash
# Starts and stops the cluster of compose.yaml. It checks the machine first, and if the start fails, it stops what it has started
# and prints the reason in one sentence. COMPOSE_FILE, for example in .env, lists the cluster's files.
#
#   ops/cluster.sh up                 starts the cluster and waits until it is ready
#   ops/cluster.sh down [--volumes]   stops it with its workers; --volumes: removes databases and models
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly NEEDED_KIB=$((2 * 1024 * 1024))

fail() {
    echo "Error: $1" >&2
    exit 1
}

require_engine() {
    command -v docker >/dev/null || fail "there is no docker; install Docker Engine, or run the platform without it: make up"
    docker compose version >/dev/null 2>&1 || fail "docker has no compose plugin; install docker-compose-plugin"
    docker version >/dev/null 2>&1 || fail "the Docker Engine does not answer: $(docker version 2>&1 >/dev/null | tail -n1)"
}

require_configuration() {
    local said
    said=$(docker compose config --quiet 2>&1) || fail "$(tail -n1 <<<"$said" | sed 's/^error while interpolating .*: required variable //')"
}

require_room() {
    local root free
    root=$(docker info --format '{{.DockerRootDir}}')
    [ -d "$root" ] || return 0 # the engine is on another machine
    free=$(df --output=avail -k "$root" | tail -n1)
    [ "$free" -ge $NEEDED_KIB ] || fail "$root has $((free / 1024)) MiB of free disk, and the cluster needs $((NEEDED_KIB / 1024)) MiB"
}

require_ports() {
    local address port
    while read -r address port; do
        [ "$address" != 0.0.0.0 ] || address=127.0.0.1
        ! (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null ||
            fail "port $port is in use; stop the program that uses it, or set another port in .env (CORRAL_PORT, CORRAL_GRAFANA_PORT)"
    done < <(published)
}

# Address and port of every published port of the cluster.
published() {
    docker compose config --format json | tr -d ' \n' | grep -oE '"ports":\[[^]]*\]' | grep -oE '\{[^}]*\}' |
        sed -nE 's/.*"host_ip":"([^"]*)".*"published":"([0-9]+)".*/\1 \2/p' | sort -u
}

# An engine on another machine can only be checked by trying.
require_card() {
    docker compose config | grep "driver: nvidia" >/dev/null && [ -d "$(docker info --format '{{.DockerRootDir}}')" ] || return 0
    [ -e /proc/driver/nvidia/version ] || [ -e /dev/dxg ] ||
        fail "compose.gpu.yaml needs a GPU, and this machine has no NVIDIA driver; install it, or remove that file from COMPOSE_FILE"
    docker info --format '{{json .Runtimes}} {{json .DiscoveredDevices}}' | grep nvidia >/dev/null ||
        fail "compose.gpu.yaml needs a GPU, and Docker finds none; install the NVIDIA Container Toolkit"
}

running() {
    [ -n "$(docker compose ps --quiet 2>/dev/null)" ]
}

# The error of the container that failed: the last line of its log has the reason.
reason() { # reason OUTPUT
    local service
    for service in $(docker compose ps --all --format '{{.Service}} {{.State}} {{.ExitCode}} {{.Health}}' | awk '($2 == "exited" && $3 != 0) || $2 == "restarting" || $4 == "unhealthy" {print $1}'); do
        echo "$service: $(docker compose logs --no-log-prefix --tail 1 "$service" 2>&1 | tail -n1)"
        return
    done
    grep -iE 'error|failed|denied|no space' <<<"$1" | tail -n1 | sed -E 's/^Error( response from daemon)?: //'
}

# Workers of an agent that was killed; they would keep the network in use.
remove_workers() {
    local network
    for network in $(docker network ls --quiet --filter "label=com.docker.compose.project=$project"); do
        docker ps --all --quiet --filter "network=$network" --filter label=ai.corral.replica | xargs -r docker rm --force >/dev/null
    done
}

up() {
    local before=running said
    require_configuration
    ops/secrets.sh check
    require_room
    require_card
    if ! running; then
        before=''
        require_ports
    fi
    if ! said=$(docker compose up --detach --wait 2>&1 | tee /dev/stderr); then
        said=$(reason "$said")
        if [ -z "$before" ]; then
            down >/dev/null 2>&1
            fail "${said:-docker compose could not start it}; everything was stopped again"
        fi
        fail "${said:-docker compose could not start it}"
    fi
}

# The agent first, because it stops its workers.
down() {
    docker compose stop node || true
    remove_workers
    docker compose down --remove-orphans "$@"
}

require_engine
command=${1:-}
shift || true
project=$(docker compose config --format json 2>/dev/null | sed -nE 's/^  "name": "(.*)",?$/\1/p' | head -n1) || true
project=${project:-${COMPOSE_PROJECT_NAME:-corral}}
case $command in
    up) up ;;
    down) down "$@" ;;
    *) fail "usage: ops/cluster.sh up|down [--volumes]" ;;
esac
