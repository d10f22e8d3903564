"""Builds the registry's FastAPI app: its routes, its error handlers, and the two background loops."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from services.process.loops import Loops
from services.protocol.connection import connect
from services.protocol.errors import BadRequest, CorralError
from services.protocol.gateways import Gateways
from services.protocol.jobs import JobEvents
from services.protocol.queue import Queue
from services.protocol.replies import ReplyWriter
from services.protocol.reports import NodeReports
from services.protocol.routes import Routes
from services.registry.api import cluster, deployments, health, http_sd, keys, models, pull
from services.registry.api.dependencies import AppState
from services.registry.api.token import GUARDED, TokenMiddleware
from services.registry.config import Settings
from services.registry.control.cluster_state import Policy
from services.registry.control.control_loop import ControlLoop
from services.registry.control.executor import Executor
from services.registry.database.database import Database
from services.registry.job_events import JobEventReader
from services.registry.job_sender import JobSender
from services.registry.metrics import Metrics
from services.registry.publish import Publisher
from services.registry.watchers import Watchers
from services.telemetry.telemetry import NO_TELEMETRY, Telemetry

log = logging.getLogger(__name__)

#: The limit of a management request's body.
MAX_BODY_BYTES = 1024**2


def create_app(settings: Settings, metrics: Metrics | None = None, telemetry: Telemetry = NO_TELEMETRY) -> FastAPI:
    """`metrics` None: metrics are counted but not exported."""
    app = FastAPI(
        title="Corral registry",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        max_body_size=MAX_BODY_BYTES,
        lifespan=_lifespan(settings, metrics or Metrics(), telemetry),
    )
    app.include_router(health.router)
    for router in (pull.router, models.router, deployments.router, keys.router, cluster.router, http_sd.router):
        app.include_router(router, prefix=GUARDED)
    app.add_middleware(TokenMiddleware, token=settings.registry_token.get_secret_value())
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
            reader = JobEventReader(
                database=database, events=events, publisher=publisher, queue=queue, watchers=watchers, metrics=metrics
            )
            executor = Executor(
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
                executor=executor,
                policy=policy(settings),
                metrics=metrics,
            )
            app.state.app_state = AppState(
                *(settings, database, redis, queue, publisher, watchers, Gateways(redis), nodes, telemetry.address, loop)
            )
            # Pushed last, so the loops stop before the connections that they use are closed.
            loops = Loops()
            stack.push_async_callback(loops.stop)
            loops.start("control loop", loop.run())
            loops.start("job events", reader.run())
            yield

    return lifespan


async def _render(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CorralError)
    if error.status >= 500:
        log.warning("error response: method=%s path=%s error=%r", request.method, request.url.path, error.message)
    return JSONResponse({"error": error.message, "code": error.code}, status_code=error.status)


async def _render_validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{where}: {first['msg']}" if where else "the body is not a JSON object with the fields of this request"
    return JSONResponse({"error": message, "code": BadRequest.code}, status_code=BadRequest.status)


async def _render_http(_: Request, error: Exception) -> JSONResponse:
    """Renders unknown paths and methods."""
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else "invalid_request"
    return JSONResponse({"error": str(error.detail).lower(), "code": code}, status_code=error.status_code)
