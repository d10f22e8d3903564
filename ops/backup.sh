#!/usr/bin/env bash
# Saves the cluster's database, secrets and .env in one archive. The cluster keeps running.
#
#   ops/backup.sh [--models] FOLDER     FOLDER/corral-<time>.tar
#   ops/backup.sh [--models] FILE       FILE must not exist
#
# --models also saves this machine's models; without it they must be pulled again. CORRAL_SECRETS and CORRAL_ENV_FILE are as in
# ops/secrets.sh. The archive contains the secrets, so only its owner can read it.
#
#   manifest            the first member: format, release, schema, time, and the SHA-256 of every other member
#   database.dump       pg_dump's custom format
#   env, secrets/...    .env, and the folder of secrets
#   models/...          manifests and blobs of the store
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 077
export LC_ALL=C

readonly ENV_FILE=${CORRAL_ENV_FILE:-.env}
readonly STORE=/var/lib/corral

fail() {
    echo "Error: $1" >&2
    exit 1
}

usage() {
    fail "usage: ops/backup.sh [--models] FOLDER|FILE"
}

in_env_file() { # in_env_file NAME
    [ ! -f "$ENV_FILE" ] || sed -n "s/^$1=//p" "$ENV_FILE" | tail -n1
}

in_postgres() { # in_postgres COMMAND...; if it fails, its last line of stderr is the error
    docker compose exec -T postgres "$@" 2>"$work/complaint" || fail "the database cannot be read: $(tail -n1 "$work/complaint")"
}

# Runs a command in a new container with the store, without touching running containers.
in_store() { # in_store COMMAND...
    docker compose --progress quiet run --rm --no-deps -T --entrypoint "$1" node "${@:2}" 2>"$work/complaint" ||
        fail "the models cannot be read: $(tail -n1 "$work/complaint")"
}

release() {
    docker compose images --format json registry 2>/dev/null | sed -nE 's/.*"Tag":"([^"]*)".*/\1/p' | head -n1
}

digests() { # of the files here
    find . -type f ! -path ./manifest -printf '%P\n' | sort | xargs -d '\n' sha256sum | sed 's/^/sha256 /'
}

[ $# -gt 0 ] || usage
models=''
if [ "$1" = --models ]; then models=yes && shift; fi
[ $# = 1 ] && [ -n "$1" ] && [ "${1#-}" = "$1" ] || usage
file=$1
[ ! -d "$file" ] || file=${file%/}/corral-$(date -u +%Y%m%dT%H%M%SZ).tar
[ -d "$(dirname "$file")" ] || fail "there is no folder $(dirname "$file")"
[ ! -e "$file" ] || fail "$file already exists; choose another file, or a folder"

partial=$file.partial
work=$(mktemp -d "$file.XXXXXX") || fail "cannot write to $(dirname "$file")"
trap 'rm -rf "$work" "$partial"' EXIT
mkdir "$work/members"

secrets=${CORRAL_SECRETS:-$(in_env_file CORRAL_SECRETS)}
ops/secrets.sh check || exit 1
cp -R "$secrets" "$work/members/secrets"
[ ! -f "$ENV_FILE" ] || cp "$ENV_FILE" "$work/members/env"
[ -n "$(docker compose ps --quiet --status running postgres 2>/dev/null)" ] || fail "the cluster's database is not running; start it: docker compose up -d --wait postgres"
in_postgres pg_dump --format=custom --username=corral corral >"$work/members/database.dump"
schema=$(in_postgres psql --username=corral --no-align --tuples-only --command='select version_num from alembic_version' corral)
: >"$work/models"
[ -z "$models" ] || in_store sh -c "cd $STORE && find models/manifests models/blobs -type f ! -name '.*' ! -name '*.partial' -exec sha256sum {} +" | sort -k2 >"$work/models"

{
    echo "corral-backup 1"
    echo "release $(release)"
    echo "schema $schema"
    echo "taken $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    (cd "$work/members" && digests)
    sed 's/^/sha256 /' "$work/models"
} >"$work/members/manifest"
members=(manifest database.dump secrets)
[ ! -f "$work/members/env" ] || members+=(env)
tar --create --owner=0 --group=0 --directory "$work/members" "${members[@]}" >"$partial" ||
    fail "cannot write the archive to $(dirname "$file")"
# Two concatenated archives are one archive for tar --ignore-zeros.
[ -z "$models" ] || cut -d' ' -f3- "$work/models" | in_store tar --create --directory "$STORE" --no-recursion --files-from - >>"$partial"
mv "$partial" "$file"
echo "$file: schema $schema, $(wc -l <"$work/models") files of models, $(du -h "$file" | cut -f1)"
