"""What a route may ask for, as named types."""

from __future__ import annotations

from typing import Annotated, TypedDict, cast

from fastapi import Depends, Request

from services.gateway.admission import Admission
from services.gateway.auth import identify, require_admin, sent_key
from services.gateway.inflight import Inflight
from services.gateway.limits import Limits
from services.gateway.observation import Observer
from services.gateway.registry import RegistryClient
from services.gateway.snapshot import RoutesView
from services.gateway.stopwatch import Stopwatch
from services.protocol.queue import Queue
from services.protocol.routes import Caller


class State(TypedDict):
    """What the lifespan makes and every request sees. `anonymous` is who calls without a key, None where a key is required."""

    routes: RoutesView
    queue: Queue
    inflight: Inflight
    limits: Limits
    observer: Observer
    registry: RegistryClient
    anonymous: Caller | None


def state_of(request: Request) -> State:
    return cast(State, request.scope["state"])


async def _stopwatch() -> Stopwatch:
    return Stopwatch()


async def _body(request: Request) -> bytes:
    return await request.body()


async def _caller(request: Request) -> Caller:
    state = state_of(request)
    key = sent_key(request.headers)
    callers = state["routes"].current.callers if key else {}
    return identify(key, callers, anonymous=state["anonymous"])


async def _routes(request: Request) -> RoutesView:
    return state_of(request)["routes"]


async def _queue(request: Request) -> Queue:
    return state_of(request)["queue"]


async def _inflight(request: Request) -> Inflight:
    return state_of(request)["inflight"]


async def _registry(request: Request) -> RegistryClient:
    return state_of(request)["registry"]


StopwatchDep = Annotated[Stopwatch, Depends(_stopwatch)]
BodyDep = Annotated[bytes, Depends(_body)]
CallerDep = Annotated[Caller, Depends(_caller)]


async def _admission(request: Request, caller: CallerDep) -> Admission:
    state = state_of(request)
    return Admission(state["inflight"], state["limits"], state["observer"], caller, request.headers)


RoutesDep = Annotated[RoutesView, Depends(_routes)]
QueueDep = Annotated[Queue, Depends(_queue)]
InflightDep = Annotated[Inflight, Depends(_inflight)]
AdmissionDep = Annotated[Admission, Depends(_admission)]
RegistryDep = Annotated[RegistryClient, Depends(_registry)]


async def _admin(caller: CallerDep) -> Caller:
    return require_admin(caller)


AdminDep = Annotated[Caller, Depends(_admin)]
