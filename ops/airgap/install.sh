#!/usr/bin/env bash
# Installs the cluster that this folder holds, with Docker Engine, its compose plugin, and no network. Doing it again does no harm.
# Settings may stand in .env before the first time: .env.example has all of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    echo "Error: $1" >&2
    exit 1
}

[ -f images.tar.gz ] || fail "images.tar.gz is not beside this script; run it where the kit was unpacked"
command -v docker >/dev/null || fail "there is no docker; install Docker Engine and its compose plugin from your system's own medium"
docker compose version >/dev/null 2>&1 || fail "docker has no compose plugin; install docker-compose-plugin from your system's own medium"
docker version >/dev/null 2>&1 || fail "the Docker Engine does not answer: $(docker version 2>&1 >/dev/null | tail -n1)"

docker load --quiet --input images.tar.gz
ops/secrets.sh
# Containers run as users of their own, who have to read these.
chmod -R a+rX ops models
ops/cluster.sh up
for file in models/*.gguf; do
    [ -e "$file" ] || continue
    name=$(basename "$file" .gguf)
    docker compose run --rm --no-TTY cli pull "/import/$name.gguf" --as "$name"
done
port=$(sed -n 's/^CORRAL_PORT=//p' .env | tail -n1)
echo "The cluster runs, on port ${CORRAL_PORT:-${port:-11434}}. The first API key is in secrets/corral_admin_key."
