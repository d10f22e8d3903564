"""GET /healthz: whether what the registry stands on answers. Needs no token and tells nothing else."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import text

from services.protocol.connection import redis_answers
from services.protocol.errors import Unavailable
from services.registry.api.dependencies import Parts, PartsDep

router = APIRouter()


@router.get("/healthz")
async def healthz(parts: PartsDep) -> JSONResponse:
    missing = [*await _postgres(parts), *await _redis(parts)]
    if missing:
        return JSONResponse({"status": "unavailable", "missing": missing}, status_code=503)
    return JSONResponse({"status": "ok"})


async def _postgres(parts: Parts) -> list[str]:
    try:
        async with parts.database.transaction() as session:
            await session.execute(text("select 1"))
    except Unavailable as error:
        return [error.message]
    return []


async def _redis(parts: Parts) -> list[str]:
    try:
        async with redis_answers():
            await parts.redis.ping()
    except Unavailable as error:
        return [error.message]
    return []
