#!/usr/bin/env bash
# Gets the cluster's images and their base images. They are pulled; if no image registry can be reached, stand-ins are built from Debian's
# packages under the same names, so that the tests use the users' Dockerfiles and compose.yaml. A stand-in may be an older version, and
# Grafana, which Debian does not have, is a page that answers its health check.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/standins"

readonly BASE=corral-standin/debian:bookworm

folder_of() { # folder_of IMAGE
    local name=${1%%:*}
    echo "${name##*/}"
}

stamp() { # stamp FOLDER
    cat debian/* "$1"/* | sha256sum | cut -c1-12
}

# A stand-in built from another version of its folder counts as missing; a pulled image has no such label.
missing() { # missing IMAGE...
    local image made_from
    for image in "$@"; do
        made_from=$(docker image inspect --format '{{index .Config.Labels "ai.corral.standin"}}' "$image" 2>/dev/null) || { echo "$image"; continue; }
        [ -z "$made_from" ] || [ "$made_from" = "$(stamp "$(folder_of "$image")")" ] || echo "$image"
    done
}

# True if there is a registry to pull from; checked before anything is downloaded.
registry_answers() { # registry_answers IMAGE
    timeout 30 docker buildx imagetools inspect "$1" >/dev/null 2>&1
}

pull() { # pull IMAGE...
    local image
    registry_answers "$1" || return
    for image in "$@"; do
        docker pull --quiet "$image" >/dev/null 2>&1 || return
    done
}

# Downloads in a build need the machine's additional certificate authorities, which are its proxy's.
make_base() {
    local mirror
    [ -f /etc/debian_version ] || { echo "no image registry can be reached, and stand-ins are made on Debian alone"; exit 3; }
    command -v mmdebstrap >/dev/null || { echo "no image registry can be reached, and without mmdebstrap no stand-ins can be made"; exit 3; }
    mirror=$(sed -n 's/^URIs: //p' /etc/apt/sources.list.d/debian.sources | head -n1)
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,wget \
        --dpkgopt=path-exclude=/usr/share/man/* --dpkgopt=path-exclude=/usr/share/doc/* --dpkgopt=path-exclude=/usr/share/locale/* \
        bookworm - "deb $mirror bookworm main" "deb $mirror bookworm-updates main" "deb ${mirror%/debian}/debian-security bookworm-security main" |
        docker import - $BASE-raw >/dev/null
    cp debian/* "$folder"
    cp /usr/local/share/ca-certificates/*.crt "$folder" 2>/dev/null || : >"$folder/none.crt"
    docker build --quiet --tag $BASE "$folder" >/dev/null
}

make_standins() { # make_standins IMAGE...
    local image folder
    for image in "$@"; do
        folder=$(folder_of "$image")
        docker build --quiet --tag "$image" --label "ai.corral.standin=$(stamp "$folder")" "$folder" >/dev/null
        echo "stand-in for $image"
    done
}

readonly WANTED=(python:3.11-slim-bookworm $(sed -nE 's/^ *image: ([a-z/]+:[v0-9.]+)$/\1/p' ../../../compose.yaml ../../../compose.tls.yaml | sort -u))
needed=$(missing "${WANTED[@]}")
[ -n "$needed" ] || exit 0
# shellcheck disable=SC2086 # names without spaces
pull $needed && exit 0
docker image inspect $BASE >/dev/null 2>&1 || make_base
# shellcheck disable=SC2046
make_standins $(missing "${WANTED[@]}")
