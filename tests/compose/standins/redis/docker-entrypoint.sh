#!/bin/sh
# As in the official image, protected mode is off, because a container publishes only the configured ports.
set -e
[ "$1" != redis-server ] || set -- "$@" --protected-mode no --bind 0.0.0.0
exec "$@"
