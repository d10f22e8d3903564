#!/bin/bash
# Supports the variables of the official image that compose.yaml uses.
set -euo pipefail
if [ "$1" = postgres ]; then
    if [ "$(id -u)" = 0 ]; then
        mkdir -p "$PGDATA"
        chown -R postgres "$PGDATA"
        chmod 700 "$PGDATA"
        exec setpriv --reuid=postgres --regid=postgres --init-groups "${BASH_SOURCE[0]}" "$@"
    fi
    if [ ! -s "$PGDATA/PG_VERSION" ]; then
        initdb -U "$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" -D "$PGDATA" >/dev/null
        echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
        pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
        [ "$POSTGRES_DB" = postgres ] || createdb -U "$POSTGRES_USER" --maintenance-db postgres "$POSTGRES_DB"
        pg_ctl -D "$PGDATA" -m fast -w stop
    fi
    exec "$@" -c listen_addresses='*'
fi
exec "$@"
