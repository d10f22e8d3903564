#!/usr/bin/env bash
# Installs the cluster from this folder on a machine with Docker Engine and its compose plugin, without a network. It can run again.
# Settings may be written to .env before the first run; .env.example lists them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    echo "Error: $1" >&2
    exit 1
}

[ -f images.tar.gz ] || fail "images.tar.gz is not in this folder; run install.sh in the folder of the unpacked kit"
command -v docker >/dev/null || fail "there is no docker; install Docker Engine and its compose plugin from your system's installation medium"
docker compose version >/dev/null 2>&1 || fail "docker has no compose plugin; install docker-compose-plugin from your system's installation medium"
docker version >/dev/null 2>&1 || fail "the Docker Engine does not answer: $(docker version 2>&1 >/dev/null | tail -n1)"

docker load --quiet --input images.tar.gz
ops/secrets.sh
# Containers run as other users, who must read these.
chmod -R a+rX ops models
ops/cluster.sh up
for file in models/*.gguf; do
    [ -e "$file" ] || continue
    name=$(basename "$file" .gguf)
    docker compose run --rm --no-TTY cli pull "/import/$name.gguf" --as "$name"
done
port=$(sed -n 's/^CORRAL_PORT=//p' .env | tail -n1)
echo "The cluster is running on port ${CORRAL_PORT:-${port:-11434}}. The first API key is in secrets/corral_admin_key."
