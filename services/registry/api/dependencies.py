"""The dependencies of the routes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast

from fastapi import Depends, Request
from redis.asyncio import Redis

from services.protocol.gateways import Gateways
from services.protocol.queue import Queue
from services.protocol.reports import NodeReports
from services.registry.config import Settings
from services.registry.control.control_loop import ControlLoop
from services.registry.database.database import Database
from services.registry.publish import Publisher
from services.registry.watchers import Watchers


@dataclass(frozen=True)
class AppState:
    """The app's objects, built by its lifespan. `metrics_address` is the `host:port` of the registry's metrics, empty if they
    are not served."""

    settings: Settings
    database: Database
    redis: Redis
    queue: Queue
    publisher: Publisher
    watchers: Watchers
    gateways: Gateways
    nodes: NodeReports
    metrics_address: str
    loop: ControlLoop


def _app_state(request: Request) -> AppState:
    return cast(AppState, request.app.state.app_state)


AppStateDep = Annotated[AppState, Depends(_app_state)]


def rfc3339(moment: datetime | None) -> str | None:
    return moment.isoformat().replace("+00:00", "Z") if moment else None
