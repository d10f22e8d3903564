"""Health checks, without a token. GET /healthz: PostgreSQL and Redis answer. GET /readyz: the control loop works as well."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import text

from services.protocol.connection import redis_answers
from services.protocol.errors import Unavailable
from services.registry.api.dependencies import AppState, AppStateDep

router = APIRouter()


@router.get("/healthz")
async def healthz(state: AppStateDep) -> JSONResponse:
    return _answer([*await _postgres(state), *await _redis(state)])


@router.get("/readyz")
async def readyz(state: AppStateDep) -> JSONResponse:
    fault = state.loop.fault
    return _answer([*await _postgres(state), *await _redis(state), *([fault] if fault else [])])


def _answer(missing: list[str]) -> JSONResponse:
    if missing:
        return JSONResponse({"status": "unavailable", "missing": missing}, status_code=503)
    return JSONResponse({"status": "ok"})


async def _postgres(state: AppState) -> list[str]:
    try:
        async with state.database.transaction() as session:
            await session.execute(text("select 1"))
    except Unavailable as error:
        return [error.message]
    return []


async def _redis(state: AppState) -> list[str]:
    try:
        async with redis_answers():
            await state.redis.ping()
    except Unavailable as error:
        return [error.message]
    return []
