"""`python -m services.gateway`: serves until SIGINT or SIGTERM.

On a signal the gateway stops accepting connections, gives answers in progress up to CORRAL_SHUTDOWN_S to finish, aborts the
rest, removes its requests from the queue, and exits with 0. On SIGUSR1 it waits for all answers to finish: another gateway has
taken over, so there is no hurry.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import socket
import sys
from types import FrameType
from typing import NoReturn, cast

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import SettingsError

from services.gateway.app import create_app
from services.gateway.config import Settings
from services.gateway.connection import Connection
from services.gateway.door import listen_at
from services.gateway.metrics import Metrics
from services.process.address import Address
from services.process.descriptors import raise_descriptor_limit
from services.process.http_peers import Peers
from services.telemetry import logs
from services.telemetry.telemetry import TelemetryStartFailed, telemetry

logger = logging.getLogger("services.gateway")

#: Clients keep connections open between requests. uvicorn's default of 5 s closes some just as the next request is sent.
KEEP_ALIVE_S = 75
BACKLOG = 2048
#: File descriptors that the gateway needs besides client connections.
SPARE_DESCRIPTORS = 128


def main() -> None:
    try:
        settings = Settings()
    except ValidationError as error:
        _refuse("; ".join(f"{_variable(problem['loc'])}: {problem['msg']}" for problem in error.errors()), status=2)
    except SettingsError as error:
        _refuse(str(error.__cause__ or error), status=2)
    logs.configure("gateway", settings.log_format, level=settings.log_level, log_requests=settings.log_requests)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        listeners = [_listen(settings.bind)]
    except OSError as error:
        _refuse(
            f"cannot listen on {settings.host}: {error.strerror}; stop the program that uses it, or set CORRAL_HOST", status=1
        )
    try:
        listeners += [listen_at(settings.door)] if settings.door else []
    except OSError as error:
        _refuse(
            f"the door at {settings.door} does not answer: {error.strerror or error}; start it, or unset CORRAL_DOOR",
            status=1,
        )
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn re-raises the signal after it has shut down
        signal.signal(number, _exit)
    metrics = Metrics()
    try:
        with telemetry("gateway", settings, metrics.registry, redis_url=settings.redis_url, traced=True) as opened:
            _serve(create_app(settings, metrics, opened), settings, listeners, _peers(settings, metrics))
    except TelemetryStartFailed as error:
        _refuse(str(error), status=1)


def _peers(settings: Settings, metrics: Metrics) -> Peers:
    descriptors = raise_descriptor_limit()
    if descriptors < settings.max_connections + SPARE_DESCRIPTORS:
        logger.warning(
            "open file limit is too low for CORRAL_MAX_CONNECTIONS: files=%d max_connections=%d; raise it with ulimit -n",
            *(descriptors, settings.max_connections),
        )
    return Peers(settings.bounds, on_refusal=lambda error: metrics.refusals.labels(error.code).inc())


def _serve(app: FastAPI, settings: Settings, listeners: list[socket.socket], peers: Peers) -> None:
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=cast(type[asyncio.Protocol], functools.partial(Connection, peers=peers)),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    server = uvicorn.Server(config)

    def retire(number: int, frame: FrameType | None) -> None:
        config.timeout_graceful_shutdown = None
        server.should_exit = True

    signal.signal(signal.SIGUSR1, retire)
    for listener in listeners:
        # Accepted connections inherit this, so that peers which lost power are noticed.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        address, port = listener.getsockname()[:2]
        logger.info("listening: url=http://%s:%d", f"[{address}]" if ":" in address else address, port)
    server.run(sockets=listeners)


def _listen(bind: Address) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        bind.host or None, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(BACKLOG)
    return listener


def _variable(location: tuple[int | str, ...]) -> str:
    """The environment variable of a setting. pydantic reports a setting by its alias or by its field name."""
    name = str(location[0])
    return name if name.isupper() else f"CORRAL_{name.upper()}"


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _refuse(text: str, *, status: int) -> NoReturn:
    sys.stderr.write(f"corral gateway: {text}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
