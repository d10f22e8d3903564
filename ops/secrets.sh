#!/usr/bin/env bash
# Creates the files that the cluster's first start needs. Existing files stay as they are.
#
#   ops/secrets.sh          secrets/, and .env from .env.example
#   ops/secrets.sh check    exits with 1 and one sentence if something is missing
#
# CORRAL_SECRETS and CORRAL_ENV_FILE choose another folder and another file.
#
#   postgres_password corral_database_url     redis_auth corral_redis_url     between the services; the URLs contain the passwords
#   corral_registry_token                     with which the gateway calls the registry
#   corral_admin_key                          the first API key, the value of CORRAL_API_KEY for users
#   grafana_password                          password of Grafana's user admin
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly FILES=(postgres_password corral_database_url redis_auth corral_redis_url corral_registry_token corral_admin_key grafana_password)
readonly ENV_FILE=${CORRAL_ENV_FILE:-.env}

fail() {
    echo "Error: $1" >&2
    exit 1
}

in_env_file() { # in_env_file NAME
    [ ! -f "$ENV_FILE" ] || sed -n "s/^$1=//p" "$ENV_FILE" | tail -n1
}

check() {
    local name file
    [ -n "$folder" ] || fail 'there are no secrets yet; run `make secrets` first'
    for name in "${FILES[@]}"; do
        file=$folder/$name
        [ -e "$file" ] || fail "$file is missing; restore it, or run \`make secrets\`"
        [ -s "$file" ] || fail "$file is empty; restore its content, or remove it and run \`make secrets\`"
        [ -r "$file" ] || fail "$file cannot be read by this user"
        ! grep -qi changethis "$file" || fail "$file still contains the placeholder; replace it with a secret, or remove it and run \`make secrets\`"
    done
}

random() {
    head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'
}

# Containers run as other users, who must read the files; the folder's mode keeps the machine's other users out.
put() { # put NAME, with the content on stdin
    local content
    content=$(cat)
    [ ! -e "$folder/$1" ] || return 0
    printf '%s\n' "$content" >"$folder/.$1"
    chmod 644 "$folder/.$1"
    mv "$folder/.$1" "$folder/$1"
}

count() {
    find "$folder" -type f | wc -l
}

make_secrets() {
    local before
    mkdir -p "$folder"
    chmod 700 "$folder"
    before=$(count)
    random | put postgres_password
    echo "postgresql+psycopg://corral:$(cat "$folder/postgres_password")@postgres:5432/corral" | put corral_database_url
    echo "requirepass $(random)" | put redis_auth
    echo "redis://:$(cut -d' ' -f2 "$folder/redis_auth")@redis:6379/0" | put corral_redis_url
    random | put corral_registry_token
    echo "corral-$(random)" | put corral_admin_key
    random | put grafana_password
    [ "$(count)" = "$before" ] || echo "Created $(($(count) - before)) secrets in $folder. The first API key is in $folder/corral_admin_key."
}

set_variable() { # set_variable NAME VALUE: sets it in the environment file if it is not set there
    [ -z "$(in_env_file "$1")" ] || return 0
    if grep -q "^$1=" "$ENV_FILE"; then
        sed -i.bak "s|^$1=.*|$1=$2|" "$ENV_FILE" && rm -f "$ENV_FILE.bak"
    else
        echo "$1=$2" >>"$ENV_FILE"
    fi
    echo "Set $1=$2 in $ENV_FILE."
}

socket_group() {
    stat -L -c %g /var/run/docker.sock 2>/dev/null || echo 0
}

folder=${CORRAL_SECRETS:-$(in_env_file CORRAL_SECRETS)}
case ${1:-} in
    check) check ;;
    '')
        folder=${folder:-./secrets}
        make_secrets
        check
        [ -f "$ENV_FILE" ] || cp .env.example "$ENV_FILE"
        set_variable CORRAL_SECRETS "$folder"
        set_variable CORRAL_DOCKER_GID "$(socket_group)"
        ;;
    *) fail "usage: ops/secrets.sh [check]" ;;
esac
