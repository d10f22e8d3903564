"""Reads request bodies, with limits on size, time and total memory."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from services.protocol.errors import BodyTooLarge, CallerLimited, RequestTimedOut, Unavailable

#: The fraction of the bytes in flight that one caller may hold.
CALLER_SHARE = 0.5
BUSY_RETRY_AFTER_S = 2

_SCOPE_KEY = "corral.body"


class BodyLimits(msgspec.Struct, frozen=True):
    """`one` limits a single body, in bytes; `in_flight` limits the bodies of all unanswered requests together.

    Reading fails if nothing arrives for `stall_s`, or if after that time the body arrives at less than `bytes_per_s` on
    average.
    """

    one: int
    in_flight: int
    stall_s: float
    bytes_per_s: float = 8192.0

    @property
    def per_caller(self) -> int:
        return max(self.one, int(self.in_flight * CALLER_SHARE))

    def due(self, *, started: float, now: float, size: int) -> float:
        """Deadline for the next bytes."""
        return min(now, started + size / self.bytes_per_s) + self.stall_s


class BodyBudget:
    """Counts the body bytes that the gateway holds, in total and per caller."""

    def __init__(self, limits: BodyLimits) -> None:
        self.limits = limits
        self._held = 0
        self._by_caller: Counter[str] = Counter()

    def take(self, caller: str, size: int) -> None:
        """Reserves `size` bytes. Raises CallerLimited or Unavailable if that exceeds a limit."""
        if self._by_caller[caller] + size > self.limits.per_caller:
            raise CallerLimited(
                f"the bodies of your requests in flight are larger than {self.limits.per_caller} bytes: let some finish before you "
                "send more",
                retry_after_s=BUSY_RETRY_AFTER_S,
            )
        if self._held + size > self.limits.in_flight:
            raise Unavailable(
                "server busy, please try again: too many large requests are in flight", retry_after_s=BUSY_RETRY_AFTER_S
            )
        self._held += size
        self._by_caller[caller] += size

    def give_back(self, caller: str, size: int) -> None:
        self._held -= size
        self._by_caller[caller] -= size
        if not self._by_caller[caller]:
            del self._by_caller[caller]


class RequestBody:
    """The body of one request. It counts against the budget until the request is answered, since the parsed request lives that
    long."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._caller = ""
        self._size = 0

    async def read(self, request: Request, caller: str) -> bytes:
        """Reads the whole body. Raises BodyTooLarge, RequestTimedOut, CallerLimited or Unavailable."""
        self._caller = caller
        announced = int(request.headers.get("content-length", 0))
        self._grow_to(announced)
        limits, clock = self._budget.limits, asyncio.get_running_loop().time
        started, chunks, size = clock(), [], 0
        try:
            async with asyncio.timeout_at(limits.due(started=started, now=started, size=0)) as timeout:
                async for chunk in request.stream():
                    chunks.append(chunk)
                    size += len(chunk)
                    self._grow_to(size)
                    if size != announced:
                        timeout.reschedule(limits.due(started=started, now=clock(), size=size))
        except TimeoutError:
            raise RequestTimedOut(
                f"the request body did not arrive in time: no data for {limits.stall_s:g} s, or less than {limits.bytes_per_s:g} bytes/s"
            ) from None
        return b"".join(chunks)

    def release(self) -> None:
        if self._size:
            self._budget.give_back(self._caller, self._size)
            self._size = 0

    def _grow_to(self, size: int) -> None:
        if size > self._budget.limits.one:
            raise BodyTooLarge(f"the request body is larger than {self._budget.limits.one} bytes (CORRAL_MAX_BODY_BYTES)")
        if size > self._size:
            self._budget.take(self._caller, size - self._size)
            self._size = size


def body_of(request: Request) -> RequestBody:
    body: RequestBody = request.scope[_SCOPE_KEY]
    return body


class BodyMiddleware:
    """Attaches a RequestBody to each request, and releases its bytes when the request ends."""

    def __init__(self, app: ASGIApp, *, budget: BodyBudget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = scope[_SCOPE_KEY] = RequestBody(self._budget)
        try:
            await self._app(scope, receive, send)
        finally:
            body.release()
