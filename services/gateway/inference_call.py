"""One HTTP request to a route that a model answers, and the routes themselves.

These routes are plain Starlette: FastAPI resolves dependencies for every request, which they do not need
(docs/decisions/0015-plain-routes.md). The rest of the gateway's routes use FastAPI.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from services.gateway.dependencies import caller_of, read_body, state_of
from services.gateway.dialects.reply import Reply
from services.gateway.requests.admission import Admission, Arrival
from services.gateway.requests.stopwatch import Stopwatch
from services.gateway.requests.ticket import Target, Ticket
from services.gateway.routes_view import RoutesView
from services.protocol.messages import Request as QueuedRequest
from services.protocol.messages import new_id
from services.protocol.waiting import Priority


@dataclass(frozen=True)
class InferenceCall:
    """`body` is what the client sent, not decoded yet. `stopwatch` runs since the request's header arrived."""

    body: bytes
    stopwatch: Stopwatch
    routes: RoutesView
    _arrival: Arrival
    _admission: Admission

    @classmethod
    async def read(cls, request: Request) -> InferenceCall:
        """Authenticates the caller, then reads the body. Raises Unauthenticated and what reading a body raises."""
        stopwatch, arrived_s = Stopwatch(), time.monotonic()
        state, body = state_of(request), await read_body(request)
        arrival = Arrival(caller_of(request), request.headers, arrived_s)
        return cls(body, stopwatch, state["routes"], arrival, state["admission"])

    def ticket(self, target: Target) -> Ticket:
        return Ticket(new_id(), self._admission.gateway, self._arrival.caller.id, target)

    async def answer(
        self,
        target: Target,
        request: QueuedRequest,
        reply: Reply,
        *,
        keep_alive_ms: int | None,
        priority: Priority | None = None,
        context_tokens: int = 0,
    ) -> ASGIApp:
        """The response to the request, which the queue has taken. See Admission.answer."""
        return await self._admission.answer(
            self._arrival,
            request,
            reply,
            model=target.name.display,
            keep_alive_ms=keep_alive_ms,
            priority=priority,
            context_tokens=context_tokens,
        )

    async def unload(self, target: Target) -> None:
        """Unloads the version as soon as it is idle."""
        await self._admission.unload(target)


def post(path: str, respond: Callable[[InferenceCall], Awaitable[ASGIApp]]) -> Route:
    async def endpoint(request: Request) -> ASGIApp:
        return await respond(await InferenceCall.read(request))

    return Route(path, endpoint, methods=["POST"], name=respond.__name__)
