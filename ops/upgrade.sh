#!/usr/bin/env bash
# Upgrades the running cluster to this checkout, CORRAL_TAG and .env, without failed requests or interrupted answers.
# docs/operations.md explains the difference from `docker compose up --detach`.
#
#   ops/upgrade.sh              builds the images first, or pulls them if CORRAL_IMAGE_PREFIX is set
#   ops/upgrade.sh --as-is      uses the images that are on this machine
#
# CORRAL_PATIENCE_S   how long to wait for an old gateway to end, and for a new worker to serve: 900
#
# Order: images; all services but the gateways (the node agent leaves its workers to its successor); a second gateway beside the first,
# which then takes no more requests and exits after its last answer; the workers of an old image, one after the other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly PATIENCE_S=${CORRAL_PATIENCE_S:-900}
# How long the new gateway may take until it serves.
readonly START_S=60
# How long the registry may take to start a worker's successor; after that it starts only if the model is requested.
readonly NOBODY_ASKS_S=15

fail() {
    echo "Error: $1" >&2
    exit 1
}

say() {
    echo "$(date +%T) $1"
}

compose() {
    docker compose --progress quiet "$@"
}

quietly() { # quietly WHAT COMMAND...
    local said
    said=$("${@:2}" 2>&1) || fail "$1: $(grep -v '^ *$' <<<"$said" | tail -n1)"
}

gateways() {
    compose ps --quiet gateway 2>/dev/null | sort
}

in_env_file() { # in_env_file NAME
    [ ! -f "${CORRAL_ENV_FILE:-.env}" ] || sed -n "s/^$1=//p" "${CORRAL_ENV_FILE:-.env}" | tail -n1
}

get_images() {
    if [ -z "${CORRAL_IMAGE_PREFIX:-$(in_env_file CORRAL_IMAGE_PREFIX)}" ]; then
        say "building the images"
        quietly "the images cannot be built" compose build node worker-image
    else
        say "pulling the images"
        quietly "the images cannot be pulled" compose pull --quiet
    fi
}

ended() { # ended CONTAINER
    [ "$(docker inspect --format '{{.State.Running}}' "$1" 2>/dev/null || echo false)" = false ]
}

wait_until() { # wait_until SECONDS CONDITION...; false if the condition is still false then
    local deadline=$((SECONDS + $1))
    until "${@:2}"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.5
    done
}

# Removes the new gateways; the old ones continue.
keep_gateways() { # keep_gateways OLD
    local gateway said=''
    for gateway in $(gateways); do
        ! grep -x "$gateway" <<<"$1" >/dev/null || continue
        said=$(docker logs --tail 1 "$gateway" 2>&1)
        docker rm --force "$gateway" >/dev/null
    done
    fail "the new gateway does not start, the old one keeps serving: ${said:-docker compose could not create it}"
}

# Starts the new gateway before the old one stops. The engine must not restart the old one when it exits.
replace_gateways() {
    local old count gateway
    old=$(gateways)
    count=$(grep -c . <<<"$old")
    compose up --detach --wait --wait-timeout "$START_S" --no-deps --no-recreate --scale "gateway=$((2 * count))" gateway >/dev/null 2>&1 || keep_gateways "$old"
    for gateway in $old; do
        docker update --restart=no "$gateway" >/dev/null
        docker kill --signal=USR1 "$gateway" >/dev/null
    done
    say "the old gateway finishes its answers"
    for gateway in $old; do
        wait_until "$PATIENCE_S" ended "$gateway" || say "it still has answers after $PATIENCE_S s; they are interrupted"
        docker stop "$gateway" >/dev/null
        docker rm "$gateway" >/dev/null
    done
}

of_worker() { # of_worker FORMAT CONTAINER
    docker inspect --format "$1" "$2" 2>/dev/null
}

workers() { # workers [FILTER]...: the running workers of this machine
    local filter=()
    for network in $(docker network ls --quiet --filter "label=com.docker.compose.project=$project"); do filter+=(--filter "network=$network"); done
    for wanted in "$@"; do filter+=(--filter "$wanted"); done
    docker ps --quiet --no-trunc --filter label=ai.corral.replica "${filter[@]}"
}

as_many() { # as_many COUNT FILTER...
    [ "$(workers "${@:2}" | wc -l)" -ge "$1" ]
}

# True for workers of the node's own images; a deployment's own image does not change.
is_old() { # is_old WORKER IMAGE
    local name
    name=$(of_worker '{{.Config.Image}}' "$1") && [ "${name%:*}" = "${2%:*}" ] &&
        [ "$(of_worker '{{.Image}}' "$1")" != "$(docker image inspect --format '{{.Id}}' "${2%-*}-${name##*-}" 2>/dev/null)" ]
}

# A stopping worker finishes its answers or hands them over. The registry starts another one if the model is wanted.
replace_workers() {
    local image worker version count
    image=$(of_worker '{{.Config.Image}}' "$(compose ps --all --quiet worker-image)") || return 0
    for worker in $(workers); do
        is_old "$worker" "$image" || continue
        version=label=ai.corral.version=$(of_worker '{{index .Config.Labels "ai.corral.version"}}' "$worker")
        count=$(workers "$version" | wc -l)
        say "replacing worker $(of_worker '{{.Name}}' "$worker" | tr -d /)"
        docker kill --signal=TERM "$worker" >/dev/null 2>&1 || continue
        wait_until "$PATIENCE_S" ended "$worker" || say "it does not stop"
        if ! wait_until $NOBODY_ASKS_S as_many "$count" "$version"; then
            say "no successor is started; its model is loaded at the next request"
        elif ! wait_until "$PATIENCE_S" as_many "$count" "$version" health=healthy; then
            say "its successor does not serve yet; corral status shows why"
        fi
    done
}

images=yes
case ${1:-} in
    '') ;;
    --as-is) images='' ;;
    *) fail "usage: ops/upgrade.sh [--as-is]" ;;
esac
command -v docker >/dev/null && docker compose version >/dev/null 2>&1 || fail "there is no docker with a compose plugin"
said=$(docker compose config --quiet 2>&1) || fail "$(tail -n1 <<<"$said")"
services=$(docker compose config --services)
! grep -qx gateway <<<"$services" || ops/secrets.sh check || exit 1 # a further machine needs only one of the secrets
[ -n "$(compose ps --quiet)" ] || fail "no cluster is running here; start it: make cluster"
project=$(docker compose config --format json | sed -nE 's/^  "name": "(.*)",?$/\1/p' | head -n1)

[ -z "$images" ] || get_images
say "replacing the services that have changed"
# shellcheck disable=SC2046 # names without spaces
quietly "the cluster does not come up" compose up --detach --wait --no-deps $(grep -vx gateway <<<"$services")
[ -z "$(gateways)" ] || replace_gateways
quietly "the cluster does not come up" compose up --detach --wait
replace_workers
say "done"
