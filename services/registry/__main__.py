"""python -m services.registry"""

from __future__ import annotations

import asyncio
import sys

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import SettingsError

from services.protocol import logs
from services.protocol.errors import Unavailable
from services.protocol.telemetry import TelemetryRefused, telemetry
from services.registry.app import create_app
from services.registry.config import Settings
from services.registry.db import SCHEMA_REVISION, Database
from services.registry.metrics import Metrics

#: A watched pull ends with the registry; its job goes on.
SHUTDOWN_S = 3


def main() -> None:
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        # What is wrong between two settings belongs to none of them.
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
    except TelemetryRefused as error:
        sys.exit(f"registry: {error}")


def _serve(app: FastAPI, settings: Settings) -> None:
    uvicorn.run(
        app,
        host=settings.registry_host,
        port=settings.registry_port,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


async def _require_schema(url: str) -> None:
    """Exits with one sentence where the database is not what this release works with."""
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
