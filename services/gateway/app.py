"""The gateway's ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from services.gateway import errors
from services.gateway.bodies import BodyBudget, BodyMiddleware
from services.gateway.config import Settings
from services.gateway.dependencies import AppState
from services.gateway.metrics import Metrics
from services.gateway.origins import OriginMiddleware, OriginPolicy
from services.gateway.registry import RegistryClient
from services.gateway.requests.admission import Admission
from services.gateway.requests.context_wait import ContextWait
from services.gateway.requests.inflight import Inflight
from services.gateway.requests.telemetry import Observer
from services.gateway.routes import chat, completions, embeddings, health, management, models, queue
from services.gateway.routes_view import RoutesView
from services.process.loops import Loops
from services.protocol.connection import connect
from services.protocol.errors import CorralError
from services.protocol.gateways import Gateways
from services.protocol.messages import new_id
from services.protocol.queue import Queue
from services.protocol.records import Records
from services.protocol.replies import ReplyReader
from services.protocol.routes import LOCAL_CALLER, Routes
from services.telemetry.telemetry import NO_TELEMETRY, Telemetry

logger = logging.getLogger(__name__)

READY_TIMEOUT_S = 5.0
READY_CHECK_INTERVAL_S = 0.01


def create_app(settings: Settings, metrics: Metrics | None = None, telemetry: Telemetry = NO_TELEMETRY) -> FastAPI:
    """Without `metrics`, the app uses its own Metrics, which nothing exports."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[AppState]:
        async with running(settings, metrics or Metrics(), telemetry) as state:
            yield state

    app = FastAPI(
        title="Corral gateway",
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.router.routes += [*chat.routes, *completions.routes, *embeddings.routes]
    for router in (models.router, queue.router, health.router, management.router):
        app.include_router(router)
    app.add_middleware(BodyMiddleware, budget=BodyBudget(settings.body_limits))
    app.add_middleware(OriginMiddleware, policy=OriginPolicy(settings.origins.split(",")), check_host=settings.local)
    app.add_exception_handler(CorralError, errors.corral_error)
    app.add_exception_handler(HTTPException, errors.http_error)
    app.add_exception_handler(ClientDisconnect, _client_disconnected)
    app.add_exception_handler(Exception, errors.unexpected_error)
    return app


@asynccontextmanager
async def running(settings: Settings, metrics: Metrics, telemetry: Telemetry) -> AsyncIterator[AppState]:
    """Starts and stops everything that the routes use.

    On exit, requests still in flight are removed from the queue before the connections close.
    """
    redis = connect(settings.redis_url)
    requests = Queue(redis)
    gateway = f"gateway-{new_id()}"
    inflight = Inflight(
        requests,
        ReplyReader(redis, gateway),
        Gateways(redis, metrics=telemetry.address),
        Records(redis),
        gateway=gateway,
        max_queue=settings.max_queue,
        on_failover=lambda cause: metrics.failovers.labels(cause).inc(),
    )
    metrics.show_connection(lambda: inflight.connected)
    routes = RoutesView(Routes(redis))
    registry = RegistryClient(settings.registry_url, settings.registry_token)
    observer = Observer(metrics, telemetry.tracer, log_prompts=settings.log_prompts)
    inflight.start()
    loops = Loops()
    loops.start("routes", routes.follow())
    loops.start("loop lag", metrics.watch_lag())
    try:
        if settings.door:
            await _can_serve(inflight, routes)
        yield AppState(
            routes=routes,
            queue=requests,
            inflight=inflight,
            admission=Admission(inflight, settings.limits, observer, ContextWait(requests, routes), settings.isolation),
            metrics=metrics,
            registry=registry,
            anonymous=None if settings.key_required else LOCAL_CALLER,
        )
    finally:
        await inflight.close()
        await loops.stop()
        await registry.aclose()
        await redis.aclose()


async def _can_serve(inflight: Inflight, routes: RoutesView) -> None:
    """Waits up to READY_TIMEOUT_S for Redis and the routes. Requests may already be waiting at the door, and shouldn't be refused just
    because the gateway has only started."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not (inflight.connected and routes.known):
                await asyncio.sleep(READY_CHECK_INTERVAL_S)


async def _client_disconnected(request: Request, error: Exception) -> Response:
    """The client disconnected before its body arrived. No one receives the 499; it only shows up in logs."""
    return Response(status_code=499)
