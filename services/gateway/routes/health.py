"""Whether the gateway is alive, and whether it can serve."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from services.gateway.dependencies import InflightDep, RoutesDep

router = APIRouter()


class _Health(msgspec.Struct, omit_defaults=True):
    status: str
    missing: list[str] = []


@router.get("/healthz")
async def healthz() -> Response:
    return _answer(_Health("ok"), 200)


@router.get("/readyz")
async def readyz(inflight: InflightDep, routes: RoutesDep) -> Response:
    """`missing` holds `redis`, or `routes` where the registry has not published any yet."""
    parts = {"redis": inflight.connected, "routes": routes.known}
    missing = [name for name, present in parts.items() if not present]
    return _answer(_Health("unavailable", missing), 503) if missing else _answer(_Health("ok"), 200)


def _answer(health: _Health, status: int) -> Response:
    return Response(msgspec.json.encode(health), status, media_type="application/json")
