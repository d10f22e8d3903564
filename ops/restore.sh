#!/usr/bin/env bash
# Restores a cluster from an archive of ops/backup.sh (database, secrets, .env, and models if it has them), and starts it.
#
#   ops/restore.sh [--replace] FILE
#
# Checks the whole archive before it changes anything. If this machine already has a cluster, other secrets or another .env, it
# refuses; --replace removes them, including the cluster's volumes with all models. If a restore fails, it removes its volumes and
# puts the previous secrets and .env back.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 077
export LC_ALL=C

readonly ENV_FILE=${CORRAL_ENV_FILE:-.env}
readonly STORE=/var/lib/corral
readonly MEMBERS='^(manifest|database\.dump|env|secrets/([a-z_]+)?|models/(manifests|blobs)/[A-Za-z0-9._/-]+)$'

fail() {
    echo "Error: $1" >&2
    exit 1
}

read_archive() { # read_archive OPTION...
    tar --extract --ignore-zeros --file "$file" "$@" 2>/dev/null
}

said() { # said NAME, of the manifest
    sed -n "s/^$1 //p" "$work/manifest" | head -n1
}

value_of() { # value_of NAME FILE
    [ ! -f "$2" ] || sed -n "s/^$1=//p" "$2" | tail -n1
}

# Reads the archive once, in order.
require_whole() {
    local names
    [ -f "$file" ] && [ -r "$file" ] || fail "there is no archive $file"
    names=$(tar --list --ignore-zeros --file "$file" 2>/dev/null) || fail "$file is damaged, or not an archive of ops/backup.sh"
    [ "$(head -n1 <<<"$names")" = manifest ] || fail "$file is not an archive of ops/backup.sh"
    ! grep -vqE "$MEMBERS" <<<"$names" && ! grep -qE '(^|/)\.\.(/|$)' <<<"$names" || fail "$file contains a member that no backup has: $(grep -vE "$MEMBERS" <<<"$names" | head -n1)"
    read_archive --directory "$work" --occurrence=1 manifest || fail "$file is damaged: its manifest cannot be read"
    [ "$(said corral-backup)" = 1 ] || fail "$file has a format that this release cannot read"
    # shellcheck disable=SC2016 # tar's shell is to expand it
    read_archive --anchored --exclude=manifest --to-command='echo "$(sha256sum | cut -d" " -f1)  $TAR_FILENAME"' | sort -k2 >"$work/found" ||
        fail "$file is damaged: it cannot be read to the end"
    sed -n 's/^sha256 //p' "$work/manifest" | sort -k2 | diff -q - "$work/found" >/dev/null ||
        fail "$file is damaged: $(sed -n 's/^sha256 //p' "$work/manifest" | sort -k2 | diff - "$work/found" | sed -nE 's/^[<>] [0-9a-f]+  //p' | head -n1) has another checksum"
}

require_known_schema() {
    local schema
    schema=$(said schema)
    grep -qsE "^revision = \"$schema\"$" migrations/versions/*.py ||
        fail "the backup's database is newer than this release (schema $schema, of release $(said release)): restore it with that release"
}

has_data() {
    [ -n "$(docker volume ls --quiet --filter "label=com.docker.compose.project=$project" --filter label=com.docker.compose.volume=postgres)" ]
}

ours() { # ours FILE: the variables of an environment file that do not depend on the machine
    grep -v '^CORRAL_DOCKER_GID=' "$1"
}

differing() { # the first existing file that differs from the archive's
    local name
    if [ -f "$ENV_FILE" ] && [ -f "$work/members/env" ] && [ "$(ours "$ENV_FILE")" != "$(ours "$work/members/env")" ]; then
        echo "$ENV_FILE"
        return
    fi
    for name in "$work"/members/secrets/*; do
        [ ! -e "$secrets/${name##*/}" ] || cmp -s "$name" "$secrets/${name##*/}" || { echo "$secrets/${name##*/}"; return; }
    done
}

keep_aside() { # keep_aside PATH
    [ ! -e "$1" ] || cp -pR "$1" "$work/before-${1//\//-}"
}

put_back() { # put_back PATH
    rm -rf "${1:?}"
    [ ! -e "$work/before-${1//\//-}" ] || cp -pR "$work/before-${1//\//-}" "$1"
}

undo() {
    ops/cluster.sh down --volumes >/dev/null 2>&1 || true
    put_back "$secrets"
    put_back "$ENV_FILE"
}

abort() {
    undo
    fail "$1; the restore was undone"
}

# The files' modes are those of ops/secrets.sh: containers run as other users and must read them; the folder's mode keeps the
# machine's other users out.
put_secrets() {
    mkdir -p "$secrets"
    chmod 700 "$secrets"
    cp "$work"/members/secrets/* "$secrets/"
    chmod 644 "$secrets"/*
}

# The group of the engine's socket differs between machines.
put_env_file() {
    [ -f "$work/members/env" ] || return 0
    sed 's/^CORRAL_DOCKER_GID=.*/CORRAL_DOCKER_GID=/' "$work/members/env" >"$ENV_FILE"
}

quietly() { # quietly COMMAND...; if it fails, its last line is the error
    "$@" >"$work/complaint" 2>&1
}

complaint() {
    tail -n1 "$work/complaint"
}

replace=''
if [ "${1:-}" = --replace ]; then replace=yes && shift; fi
[ $# = 1 ] && [ -n "$1" ] || fail "usage: ops/restore.sh [--replace] FILE, where FILE is an archive of ops/backup.sh"
file=$1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
require_whole
require_known_schema
mkdir "$work/members"
read_archive --directory "$work/members" --anchored --exclude='models/*' || fail "$file cannot be unpacked to $work: is the disk full?"
secrets=${CORRAL_SECRETS:-$(value_of CORRAL_SECRETS "$work/members/env")}
secrets=${secrets:-./secrets}
export CORRAL_SECRETS=$secrets

docker compose version >/dev/null 2>&1 || fail "there is no docker with a compose plugin"
project=$(docker compose config --format json 2>/dev/null | sed -nE 's/^  "name": "(.*)",?$/\1/p' | head -n1) || true
project=${project:-${COMPOSE_PROJECT_NAME:-corral}}
if [ -z "$replace" ]; then
    [ -z "$(docker compose ps --quiet 2>/dev/null)" ] || fail "a cluster is running here; ops/restore.sh --replace removes it first, with all its data"
    ! has_data || fail "the data of a cluster is here; ops/restore.sh --replace removes it first"
    differs=$(differing)
    [ -z "$differs" ] || fail "$differs differs from the backup; move it away, or use ops/restore.sh --replace"
fi

[ -z "$replace" ] || quietly ops/cluster.sh down --volumes || fail "cannot take the cluster down: $(complaint)"
keep_aside "$secrets"
keep_aside "$ENV_FILE"
trap 'undo; rm -rf "$work"; exit 130' INT TERM HUP
put_secrets
put_env_file
quietly ops/secrets.sh || abort "the backup's secrets are not complete: $(complaint)"
quietly docker compose up --detach --wait postgres || abort "PostgreSQL does not start: $(complaint)"
quietly docker compose exec -T postgres pg_restore --exit-on-error --no-owner --username=corral --dbname=corral <"$work/members/database.dump" ||
    abort "the database cannot be restored: $(complaint)"
if grep -q ' models/' "$work/manifest"; then
    # tar in the container reads the archive from its standard input and needs its own --ignore-zeros.
    quietly docker compose --progress quiet run --rm --no-deps -T --entrypoint tar node --extract --ignore-zeros --directory "$STORE" models <"$file" ||
        abort "the models cannot be restored: $(complaint)"
fi
quietly ops/cluster.sh up || abort "the cluster does not start: $(sed -n 's/^Error: //p' "$work/complaint" | tail -n1)"
echo "Restored the cluster of $(said taken), release $(said release)."
