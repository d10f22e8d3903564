"""python -m services.registry"""

from __future__ import annotations

import asyncio
import logging
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import SettingsError

from services.protocol.errors import Unavailable
from services.registry.app import create_app
from services.registry.config import Settings
from services.registry.db import SCHEMA_REVISION, Database

#: A watched pull ends with the registry; its job goes on.
SHUTDOWN_S = 3


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        # What is wrong between two settings belongs to none of them.
        names = [f"setting CORRAL_{str(name).upper().removeprefix('CORRAL_')}: " for name in first["loc"][:1]]
        sys.exit(f"registry: {''.join(names)}{first['msg']}")
    except SettingsError as error:
        sys.exit(f"registry: {error.__cause__ or error}")
    asyncio.run(_require_schema(settings.database_url))
    uvicorn.run(
        create_app(settings),
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
