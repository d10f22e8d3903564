#!/bin/sh
# As the official image: protected mode is off, since a container publishes what it is told to and nothing else.
set -e
[ "$1" != redis-server ] || set -- "$@" --protected-mode no --bind 0.0.0.0
exec "$@"
