"""What a route may ask for, as named types."""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict, cast

from fastapi import Depends, Request

from services.gateway.auth import identify, require_admin, sent_key
from services.gateway.bodies import body_of
from services.gateway.metrics import Metrics
from services.gateway.registry import RegistryClient
from services.gateway.requests.admission import Admission
from services.gateway.requests.inflight import Inflight
from services.gateway.routes_view import RoutesView
from services.process.http_peers import network_of
from services.protocol.queue import Queue
from services.protocol.routes import Caller


class AppState(TypedDict):
    """What the lifespan makes and every request sees. `anonymous` is who calls without a key, None where a key is required. `caller` is
    who makes this request."""

    routes: RoutesView
    queue: Queue
    inflight: Inflight
    admission: Admission
    metrics: Metrics
    registry: RegistryClient
    anonymous: Caller | None
    caller: NotRequired[Caller]


def state_of(request: Request) -> AppState:
    return cast(AppState, request.scope["state"])


def caller_of(request: Request) -> Caller:
    """Identified by the request's headers, once for each request. Raises Unauthenticated."""
    state = state_of(request)
    if "caller" not in state:
        key = sent_key(request.headers)
        callers = state["routes"].current.callers if key else {}
        state["caller"] = identify(key, callers, anonymous=state["anonymous"])
    return state["caller"]


async def _routes(request: Request) -> RoutesView:
    return state_of(request)["routes"]


async def _queue(request: Request) -> Queue:
    return state_of(request)["queue"]


async def _inflight(request: Request) -> Inflight:
    return state_of(request)["inflight"]


async def _registry(request: Request) -> RegistryClient:
    return state_of(request)["registry"]


async def read_body(request: Request) -> bytes:
    """Authenticates the caller before it reads a byte. Raises Unauthenticated and what reading a body raises."""
    caller = caller_of(request)
    # A caller without a key is identified by its address.
    peer = request.client.host if request.client else ""
    budget_key = network_of(peer) if caller is state_of(request)["anonymous"] else caller.id
    return await body_of(request).read(request, budget_key)


async def _caller(request: Request) -> Caller:
    return caller_of(request)


CallerDep = Annotated[Caller, Depends(_caller)]
BodyDep = Annotated[bytes, Depends(read_body)]
RoutesDep = Annotated[RoutesView, Depends(_routes)]
QueueDep = Annotated[Queue, Depends(_queue)]
InflightDep = Annotated[Inflight, Depends(_inflight)]
RegistryDep = Annotated[RegistryClient, Depends(_registry)]


async def _admin(caller: CallerDep) -> Caller:
    return require_admin(caller)


AdminDep = Annotated[Caller, Depends(_admin)]
