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
from services.gateway.config import Settings
from services.gateway.dependencies import State
from services.gateway.direct_routes import add_directly
from services.gateway.inflight import Inflight
from services.gateway.metrics import Metrics
from services.gateway.observation import Observer
from services.gateway.origins import OriginMiddleware, OriginPolicy
from services.gateway.registry import RegistryClient
from services.gateway.routes import chat, completions, embeddings, health, management, models, queue
from services.gateway.snapshot import RoutesView
from services.gateway.tasks import end
from services.protocol.connection import connect
from services.protocol.errors import CorralError
from services.protocol.gateways import Gateways
from services.protocol.messages import new_id
from services.protocol.queue import Queue
from services.protocol.records import Records
from services.protocol.replies import ReplyReader
from services.protocol.routes import LOCAL_CALLER, Routes
from services.protocol.telemetry import UNSEEN, Telemetry

logger = logging.getLogger(__name__)

READY_S = 5.0
LOOK_S = 0.01


def create_app(settings: Settings, metrics: Metrics | None = None, telemetry: Telemetry = UNSEEN) -> FastAPI:
    """`metrics` None: they are counted, and nobody asks."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        async with running(settings, metrics or Metrics(), telemetry) as state:
            yield state

    app = FastAPI(
        title="Corral gateway",
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
        max_body_size=settings.max_body_bytes,
    )
    for router in (chat.router, completions.router, embeddings.router):
        add_directly(app, router)
    for router in (models.router, queue.router, health.router, management.router):
        app.include_router(router)
    app.add_middleware(OriginMiddleware, policy=OriginPolicy(settings.origins.split(",")), check_host=settings.local)
    app.add_exception_handler(CorralError, errors.corral_error)
    app.add_exception_handler(HTTPException, errors.http_error)
    app.add_exception_handler(ClientDisconnect, _nobody_to_answer)
    app.add_exception_handler(Exception, errors.unexpected_error)
    return app


@asynccontextmanager
async def running(settings: Settings, metrics: Metrics, telemetry: Telemetry) -> AsyncIterator[State]:
    """The parts behind the routes. They end in the order in which they depend on each other: what is still in flight is taken
    back while the connections stand, and the connections go last."""
    redis = connect(settings.redis_url)
    requests = Queue(redis)
    gateway = f"gateway-{new_id()}"
    inflight = Inflight(
        requests,
        ReplyReader(redis, gateway),
        Gateways(redis, requests, metrics=telemetry.address),
        Records(redis),
        gateway=gateway,
        max_queue=settings.max_queue,
        on_failover=lambda cause: metrics.failovers.labels(cause).inc(),
    )
    metrics.show_connection(lambda: inflight.connected)
    routes = RoutesView(Routes(redis))
    registry = RegistryClient(settings.registry_url, settings.registry_token)
    inflight.start()
    beside = [asyncio.create_task(loop) for loop in (routes.follow(), metrics.watch_lag())]
    try:
        if settings.door:
            await _can_serve(inflight, routes)
        yield State(
            routes=routes,
            queue=requests,
            inflight=inflight,
            limits=settings.limits,
            observer=Observer(metrics, telemetry.tracer, log_prompts=settings.log_prompts),
            registry=registry,
            anonymous=None if settings.key_required else LOCAL_CALLER,
        )
    finally:
        await inflight.close()
        await end(beside)
        await registry.aclose()
        await redis.aclose()


async def _can_serve(inflight: Inflight, routes: RoutesView) -> None:
    """Behind a door requests may wait already, which are not to be refused by a gateway that has only just begun. Where Redis does not
    answer or knows no routes, they are told so after a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_S):
            while not (inflight.connected and routes.known):
                await asyncio.sleep(LOOK_S)


async def _nobody_to_answer(request: Request, error: Exception) -> Response:
    """The client left before its body had arrived; 499 is only seen in logs."""
    return Response(status_code=499)
