"""Runs the registry: `python -m services.registry`."""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import cast

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import SettingsError

from services.process.descriptors import raise_descriptor_limit
from services.process.http_connection import BoundedConnection
from services.process.http_peers import Bounds, Peers
from services.protocol.errors import Unavailable
from services.registry.app import create_app
from services.registry.config import Settings
from services.registry.database.database import SCHEMA_REVISION, Database
from services.registry.metrics import Metrics
from services.telemetry import logs
from services.telemetry.telemetry import TelemetryStartFailed, telemetry

#: How long open requests may take at shutdown. A watched pull is cut off; its job continues on the node.
SHUTDOWN_S = 3


def main() -> None:
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        # An error of a combination of settings names no setting.
        names = [f"setting CORRAL_{str(name).upper().removeprefix('CORRAL_')}: " for name in first["loc"][:1]]
        sys.exit(f"registry: {''.join(names)}{first['msg']}")
    except SettingsError as error:
        sys.exit(f"registry: {error.__cause__ or error}")
    logs.configure("registry", settings.log_format)
    asyncio.run(_require_schema(settings.database_url))
    metrics = Metrics()
    try:
        with telemetry("registry", settings, metrics.registry, redis_url=settings.redis_url) as opened:
            _serve(create_app(settings, metrics, opened), settings)
    except TelemetryStartFailed as error:
        sys.exit(f"registry: {error}")


def _serve(app: FastAPI, settings: Settings) -> None:
    raise_descriptor_limit()
    uvicorn.run(
        app,
        host=settings.registry_host,
        port=settings.registry_port,
        loop="uvloop",
        http=cast(type[asyncio.Protocol], functools.partial(BoundedConnection, peers=Peers(Bounds()))),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


async def _require_schema(url: str) -> None:
    """Exits with an error if the database does not answer or its schema revision is not this release's."""
    database = Database(url)
    try:
        revision = await database.schema_revision()
    except Unavailable as error:
        sys.exit(f"registry: {error.message}; is CORRAL_DATABASE_URL right?")
    finally:
        await database.close()
    if revision != SCHEMA_REVISION:
        sys.exit(
            f"registry: the database is at revision {revision or 'none'} and this release needs {SCHEMA_REVISION}: "
            "run `alembic upgrade head` first"
        )


if __name__ == "__main__":
    main()
