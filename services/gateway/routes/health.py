"""Health checks: whether the gateway is alive, and whether it is ready to serve."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from services.gateway.dependencies import InflightDep, RoutesDep

router = APIRouter()


class _Health(msgspec.Struct, omit_defaults=True):
    status: str
    missing: list[str] = []
    reason: str = ""


@router.get("/healthz")
async def healthz() -> Response:
    return _answer(_Health("ok"), 200)


@router.get("/health")
@router.get("/readyz")
async def readyz(inflight: InflightDep, routes: RoutesDep) -> Response:
    """`missing` lists what keeps the gateway from being ready.

    - `redis`: Redis doesn't answer or can't write.
    - `routes`: the registry hasn't published any routes yet.
    - `control loop`: the registry's control loop fails. Loaded models are still served, but nothing is loaded, unloaded or
      pulled.
    """
    fault = routes.current.fault if routes.known else ""
    parts = {"redis": inflight.connected, "routes": routes.known, "control loop": not fault}
    missing = [name for name, present in parts.items() if not present]
    return _answer(_Health("unavailable", missing, inflight.fault or fault), 503) if missing else _answer(_Health("ok"), 200)


def _answer(health: _Health, status: int) -> Response:
    return Response(msgspec.json.encode(health), status, media_type="application/json")
