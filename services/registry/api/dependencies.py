"""What routes ask for, as named types."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast

from fastapi import Depends, Request
from redis.asyncio import Redis

from services.protocol.errors import Unauthenticated
from services.protocol.gateways import Gateways
from services.protocol.queue import Queue
from services.protocol.reports import NodeReports
from services.registry.config import Settings
from services.registry.db import Database
from services.registry.publish import Publisher
from services.registry.watchers import Watchers


@dataclass(frozen=True)
class Parts:
    """What the lifespan built. `metrics_address` is the `host:port` of the registry's own, empty where they are not served."""

    settings: Settings
    database: Database
    redis: Redis
    queue: Queue
    publisher: Publisher
    watchers: Watchers
    gateways: Gateways
    nodes: NodeReports
    metrics_address: str


def _parts(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


PartsDep = Annotated[Parts, Depends(_parts)]


def require_token(request: Request, parts: PartsDep) -> None:
    """The gateway's bearer token; compared in constant time."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    expected = parts.settings.registry_token.get_secret_value()
    if scheme.lower() != "bearer" or not secrets.compare_digest(token.strip().encode(), expected.encode()):
        raise Unauthenticated("the registry's token is missing or wrong")


def rfc3339(moment: datetime | None) -> str | None:
    return moment.isoformat().replace("+00:00", "Z") if moment else None
