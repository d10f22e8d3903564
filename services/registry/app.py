"""Assembly: the parts, the loops beside the API, one handler for every error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from services.protocol.connection import connect
from services.protocol.errors import BadRequest, CorralError
from services.protocol.gateways import Gateways
from services.protocol.jobs import JobEvents
from services.protocol.queue import Queue
from services.protocol.replies import ReplyWriter
from services.protocol.reports import NodeReports
from services.protocol.routes import Routes
from services.protocol.telemetry import UNSEEN, Telemetry
from services.registry.actor import Actor
from services.registry.api import cluster, deployments, health, http_sd, keys, models, pull
from services.registry.api.dependencies import Parts, require_token
from services.registry.config import Settings
from services.registry.db import Database
from services.registry.job_events import JobEventReader
from services.registry.loop import ControlLoop
from services.registry.metrics import Metrics
from services.registry.publish import Publisher
from services.registry.tasks import JobSender
from services.registry.watchers import Watchers
from services.registry.world import Policy

log = logging.getLogger(__name__)


def create_app(settings: Settings, metrics: Metrics | None = None, telemetry: Telemetry = UNSEEN) -> FastAPI:
    """`metrics` None: they are counted, and nobody asks."""
    app = FastAPI(
        title="Corral registry",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_lifespan(settings, metrics or Metrics(), telemetry),
    )
    app.include_router(health.router)
    for router in (pull.router, models.router, deployments.router, keys.router, cluster.router, http_sd.router):
        app.include_router(router, prefix="/registry/v1", dependencies=[Depends(require_token)])
    app.add_exception_handler(CorralError, _render)
    app.add_exception_handler(RequestValidationError, _render_validation)
    app.add_exception_handler(HTTPException, _render_http)
    return app


def policy(settings: Settings) -> Policy:
    return Policy(
        engine=settings.engine,
        keep_alive_s=settings.keep_alive,
        node_lost_after_s=settings.node_lost_after_s,
        start_timeout_s=settings.start_timeout_s,
        job_resend_after_s=settings.job_resend_after_s,
        memory_reserve_bytes=settings.memory_reserve_bytes,
    )


def _lifespan(
    settings: Settings, metrics: Metrics, telemetry: Telemetry
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            redis = connect(settings.redis_url)
            stack.push_async_callback(redis.aclose)
            database = Database(settings.database_url)
            stack.push_async_callback(database.close)
            sender = JobSender(settings.redis_url)
            stack.callback(sender.close)
            queue, events, watchers, nodes = Queue(redis), JobEvents(redis), Watchers(), NodeReports(redis)
            publisher = Publisher(database, Routes(redis), keep_alive_s=settings.keep_alive)
            app.state.parts = Parts(
                settings, database, redis, queue, publisher, watchers, Gateways(redis, queue), nodes, telemetry.address
            )
            reader = JobEventReader(
                database=database, events=events, publisher=publisher, queue=queue, watchers=watchers, metrics=metrics
            )
            actor = Actor(
                database=database,
                queue=queue,
                replies=ReplyWriter(redis),
                events=events,
                sender=sender,
                engine=settings.engine,
                admin_key=settings.admin_key.get_secret_value() if settings.admin_key else None,
            )
            loop = ControlLoop(
                database=database,
                queue=queue,
                node_reports=nodes,
                publisher=publisher,
                actor=actor,
                policy=policy(settings),
                metrics=metrics,
            )
            # The loops end before what they stand on is closed.
            await stack.enter_async_context(_running(loop.run(), reader.run()))
            yield

    return lifespan


@asynccontextmanager
async def _running(*loops: Coroutine[None, None, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _render(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CorralError)
    if error.status >= 500:
        log.warning("%s %s: %s", request.method, request.url.path, error.message)
    return JSONResponse({"error": error.message, "code": error.code}, status_code=error.status)


async def _render_validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{where}: {first['msg']}" if where else "the body is no JSON object of this request"
    return JSONResponse({"error": message, "code": BadRequest.code}, status_code=BadRequest.status)


async def _render_http(_: Request, error: Exception) -> JSONResponse:
    """Unknown paths and verbs."""
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else "invalid_request"
    return JSONResponse({"error": str(error.detail).lower(), "code": code}, status_code=error.status_code)
