#!/usr/bin/env bash
# Packs a cluster for a machine without a network into dist/corral-airgap-VERSION.tar: its images, files and documentation, a model,
# and install.sh. COMPOSE_FILE and CORRAL_TAG, for example in .env, choose the images; Corral's own images must be built before.
# CORRAL_DIST replaces dist/.
#
#   ops/airgap/pack.sh [FILE.gguf [NAME]]    NAME is the model's name on that machine, by default the file's name
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    echo "Error: $1" >&2
    exit 1
}

setting() { # setting NAME DEFAULT: of the environment, or of .env
    local value=${!1:-}
    [ -n "$value" ] || [ ! -f "${CORRAL_ENV_FILE:-.env}" ] || value=$(sed -n "s/^$1=//p" "${CORRAL_ENV_FILE:-.env}" | tail -n1)
    echo "${value:-$2}"
}

# The settings that choose the cluster's images must be the same there.
settings() { # settings FILE
    sed -i -e "s|^#COMPOSE_FILE=.*|COMPOSE_FILE=$(setting COMPOSE_FILE compose.yaml):compose.import.yaml|" \
        -e "s|^#CORRAL_IMAGE_PREFIX=.*|CORRAL_IMAGE_PREFIX=$(setting CORRAL_IMAGE_PREFIX '')|" \
        -e "s|^#CORRAL_TAG=.*|CORRAL_TAG=$(setting CORRAL_TAG dev)|" "$1"
}

save_images() { # save_images FILE
    local images
    docker compose --progress quiet pull --ignore-buildable --policy missing || fail "not all third-party images could be pulled"
    mapfile -t images < <(docker compose --profile tools config --images | sort -u)
    docker image inspect "${images[@]}" >/dev/null 2>"$folder/missing" || fail "$(head -n1 "$folder/missing"); run \`make images\` first"
    docker save "${images[@]}" | gzip -1 >"$1"
    echo "${#images[@]} images: $(du -h "$1" | cut -f1)"
}

model=${1:-}
[ -z "$model" ] || [ -f "$model" ] || fail "there is no file $model"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -n1)
kit=corral-airgap-$version
dist=${CORRAL_DIST:-dist}
mkdir -p "$dist"
folder=$(mktemp -d "$dist/.airgap.XXXXXX")
trap 'rm -rf "$folder"' EXIT
export CORRAL_SECRETS=${CORRAL_SECRETS:-secrets} # compose.yaml requires it; no container starts here

mkdir -p "$folder/$kit/models"
cp -r compose*.yaml Makefile README.md LICENSE docs ops .env.example "$folder/$kit"
cp ops/airgap/install.sh "$folder/$kit"
find "$folder/$kit" -name __pycache__ -prune -exec rm -rf {} +
settings "$folder/$kit/.env.example"
save_images "$folder/$kit/images.tar.gz"
if [ -n "$model" ]; then
    name=${2:-$(basename "$model" .gguf)}
    ln -s "$(realpath "$model")" "$folder/$kit/models/$name.gguf"
fi
tar --create --dereference --mode=a+rX --owner=0 --group=0 --directory "$folder" --file "$folder/kit" "$kit"
mv "$folder/kit" "$dist/$kit.tar"
echo "$dist/$kit.tar: $(du -h "$dist/$kit.tar" | cut -f1)"
