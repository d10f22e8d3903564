"""The queue of requests, and the only module that knows its Redis keys (drawn at the top of queue.lua).

Each method is one call of the script, so each is atomic. Who calls what: gateways enqueue, cancel, settle, and look after
requests whose worker was lost; workers claim, report and leave; the registry reads demand and workers and refuses what it
cannot serve. Driver errors leave here as Unavailable.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, cast

import msgspec
from redis.asyncio import Redis

from services.protocol.connection import BLOCK_S, redis_answers, wait_for_answer
from services.protocol.errors import CallerLimited, QueueFull
from services.protocol.messages import Cancel, Claim, Committed, Control, Crash, Request, Wake
from services.protocol.prefixes import Prefix, pack
from services.protocol.reports import WorkerReport, WorkerState
from services.protocol.script import Script
from services.protocol.waiting import Place, Priority, Terms, VersionQueue, place, retry_after_s
from services.protocol.wire import Decoder, encode

#: A record outlives any request; this only bounds what a crashed gateway can leave behind.
REQUEST_TTL_MS = 24 * 3600 * 1000

#: From here on the first of a band that more urgent ones keep waiting gets a share of the claims.
AGING_MS = 10_000

SERVER_BUSY = "server busy, please try again.  maximum pending requests exceeded"

_decode_report = Decoder(WorkerReport)


class _RequestEnvelope(msgspec.Struct, frozen=True):
    request: Request


class _Resumption(msgspec.Struct, frozen=True):
    committed: tuple[Committed, ...]


class _ControlEnvelope(msgspec.Struct, frozen=True):
    control: Control


_decode_request = Decoder(_RequestEnvelope)
_decode_resumption = Decoder(_Resumption)
_decode_control = Decoder(_ControlEnvelope)
_WAKE = encode(_ControlEnvelope(Wake()))
_PLAIN_TERMS = Terms()


class Demand(msgspec.Struct, frozen=True):
    """How much a version is wanted. `keep_alive_ms` negative: for ever; None: the platform's default."""

    version: str
    waiting: int
    unused_ms: int
    keep_alive_ms: int | None


class LostRequest(msgspec.Struct, frozen=True):
    """A claim whose worker's lease has ended. `crashed`: its process ended by its own fault."""

    request: str
    epoch: int
    worker: str
    crashed: bool


class RefusedRequest(msgspec.Struct, frozen=True):
    """A waiting request that was taken out of its queue unserved."""

    request: str
    epoch: int
    gateway: str


@dataclass(frozen=True)
class Taken:
    """What a worker's call of `claim` brought. After `again_s` there may be more for it that is left to other workers until then; None:
    a Wake will tell."""

    claims: list[Claim]
    again_s: float | None


class Queue:
    """Raises Unavailable from every method when Redis does not answer."""

    def __init__(self, redis: Redis, *, prefix: str = "corral", aging_ms: int = AGING_MS) -> None:
        self._redis = redis
        self._prefix = prefix
        self._aging_ms = aging_ms
        self._unanswered: dict[str, str] = {}
        source = resources.files("services.protocol").joinpath("queue.lua").read_text()
        self._script = Script(redis, source)

    async def _call(self, command: str, *args: str | bytes | int | float) -> Any:
        async with redis_answers():
            return await self._script([self._prefix], [command, *args])

    async def enqueue(
        self,
        request: Request,
        *,
        cost: float,
        limit: int,
        terms: Terms = _PLAIN_TERMS,
        keep_alive_ms: int | None = None,
        begins: tuple[Prefix, ...] = (),
    ) -> Place:
        """Puts the request in its version's queue.

        `cost` is the estimate in tokens, `begins` what a worker may hold in its cache of the request's prompt. Raises QueueFull
        where `limit` requests wait or it would be likely to wait for more than half of its time, CallerLimited where the caller
        has as many waiting as it may.
        """
        admitted, depth, position, rate = await self._call(
            "enqueue",
            request.id,
            request.version,
            request.gateway,
            request.caller,
            encode(_RequestEnvelope(request)),
            cost,
            terms.weight,
            terms.priority.band,
            limit,
            _or_empty(terms.caller_limit),
            _or_empty(terms.timeout_ms),
            _or_empty(keep_alive_ms),
            REQUEST_TTL_MS,
            _WAKE,
            pack(begins),
        )
        per_second = _known(rate)
        if admitted == 1:
            return place(position, per_second)
        wait_s = retry_after_s(position, per_second)
        if admitted in (0, -2):
            raise QueueFull(SERVER_BUSY, retry_after_s=wait_s)
        raise CallerLimited(
            "too many of your requests are waiting for this model: let some finish before you send more", retry_after_s=wait_s
        )

    async def claim(self, version: str, worker: str, *, capacity: int, dropped: Collection[bytes] = ()) -> Taken:
        """Takes up to `capacity` requests, the fairest first, but leaves those to other workers for a moment that have much more of
        their prompts in the cache. A worker that gets fewer will find a Wake in its inbox.

        `dropped` are the digests of prefixes that the worker's cache holds no longer; it counts as holding those of all it ever claimed.

        A worker without a lease (see `report`) gets nothing. One call at a time for each worker: where a call failed, Redis
        may have carried it out all the same, and the worker's next call answers for both.
        """
        repeated = worker in self._unanswered
        claim = self._unanswered.setdefault(worker, secrets.token_hex(8))
        again_ms, *flat = await self._call(
            "claim", version, worker, capacity, REQUEST_TTL_MS, claim, int(repeated), self._aging_ms, *dropped
        )
        del self._unanswered[worker]
        claims = [
            Claim(_decode_request(payload).request, epoch, _decode_resumption(resumption).committed if resumption else (), held)
            for _, epoch, payload, resumption, held in _rows(flat, 5)
        ]
        return Taken(claims, None if again_ms == b"" else again_ms / 1000)

    async def settle(self, request: str, epoch: int, *, cost: float) -> bool:
        """Ends the request, charging what it really cost. False where that claim is no longer the current one."""
        return bool(await self._call("settle", request, epoch, cost))

    async def cancel(self, request: str) -> Literal["waiting", "claimed", "gone"]:
        """Takes a waiting request out of its queue, or tells the worker that holds it; that one still ends with a frame."""
        outcome: bytes = await self._call("cancel", request, encode(_ControlEnvelope(Cancel(request))))
        return cast('Literal["waiting", "claimed", "gone"]', outcome.decode())

    async def expire(self, request: str) -> bool:
        """Takes a request out that has waited for too long. False where a worker has begun with it."""
        return bool(await self._call("expire", request))

    async def place(self, request: str) -> Place | None:
        """None where it does not wait."""
        found = await self._call("place", request)
        return place(found[0], _known(found[1])) if found else None

    async def requeue(self, request: str, epoch: int, committed: tuple[Committed, ...] = ()) -> bool:
        """Puts a lost request back in its old place, under the next epoch; its next claim brings what was `committed`. False where
        the claim is no longer current."""
        resumption = encode(_Resumption(committed)) if committed else b""
        return bool(await self._call("requeue", request, epoch, REQUEST_TTL_MS, _WAKE, resumption))

    async def report(self, report: WorkerReport, *, lease_ms: int) -> None:
        """Publishes the worker's state and extends its lease. One that has a free slot while requests wait is woken."""
        free = max(0, report.slots - report.running) if report.state is WorkerState.READY else ""
        await self._call("report", report.worker, encode(report), lease_ms, report.version, _WAKE, free)

    async def leave(self, worker: str, version: str, *, crashed: bool = False) -> None:
        """Ends the worker's lease; requests that it still holds count as lost from now on. `crashed`: its process ended by its own
        fault, which one of them may have caused."""
        await self._call("leave", worker, version, int(crashed))

    async def lost(self, gateway: str) -> list[LostRequest]:
        flat = await self._call("lost", gateway)
        return [
            LostRequest(request.decode(), epoch, worker.decode(), bool(crashed))
            for request, epoch, worker, crashed in _rows(flat, 4)
        ]

    async def workers(self) -> list[WorkerReport]:
        reports = (_decode_report.known(report) for report in await self._call("workers"))
        return [report for report in reports if report]

    async def touch(self, version: str, *, keep_alive_ms: int | None) -> None:
        """Counts as a use of the version; a keep_alive of 0 asks for it to be unloaded once idle."""
        await self._call("touch", version, _or_empty(keep_alive_ms))

    async def demand(self) -> list[Demand]:
        flat = await self._call("demand")
        return [
            Demand(version.decode(), waiting, unused_ms, int(keep_alive) if keep_alive else None)
            for version, waiting, unused_ms, keep_alive in zip(*[iter(flat)] * 4, strict=True)
        ]

    async def depths(self, *, caller: str | None = None) -> list[VersionQueue]:
        """Of every version that was asked for; where a `caller` is given, by caller only that one's requests."""
        rows = _rows(await self._call("depths", caller or ""), 7)
        return [
            VersionQueue(
                version=version.decode(),
                waiting=dict(zip(Priority, waiting, strict=True)),
                oldest_ms=oldest_ms,
                per_second=_known(rate),
                callers={name.decode(): int(count) for name, count in _rows(callers, 2) if int(count)},
            )
            for version, *waiting, oldest_ms, rate, callers in rows
        ]

    async def forget(self, version: str) -> bool:
        """Drops the record of demand for a version that was unloaded. False where requests wait for it again."""
        return bool(await self._call("forget", version))

    async def refuse(self, version: str) -> list[RefusedRequest]:
        """Takes every waiting request out of the queue; the caller of this owes each of them a Failed frame."""
        flat = await self._call("refuse", version)
        return [RefusedRequest(request.decode(), epoch, gateway.decode()) for request, epoch, gateway in _rows(flat, 3)]

    async def signal(self) -> None:
        """Wakes the registry's loop: something changed in its own rows."""
        async with redis_answers():
            await self._redis.publish(f"{self._prefix}:signal", "registry")

    async def crash(self, worker: str) -> None:
        """Has the worker kill itself."""
        async with redis_answers():
            await self._redis.lpush(f"{self._prefix}:inbox:{worker}", encode(_ControlEnvelope(Crash())))

    async def next_control(self, worker: str, *, timeout_s: float) -> Control | None:
        """Blocks until the worker's inbox has a message; None after `timeout_s`."""
        inbox = [f"{self._prefix}:inbox:{worker}"]
        entry = await wait_for_answer(lambda wait_s: self._redis.blpop(inbox, timeout=wait_s), timeout_s=timeout_s)
        return _decode_control(entry[1]).control if entry else None

    @asynccontextmanager
    async def signals(self) -> AsyncIterator[Signals]:
        """A subscription to the signal that something may have to be loaded."""
        async with self._redis.pubsub() as pubsub:
            async with redis_answers():
                await pubsub.subscribe(f"{self._prefix}:signal")
                await pubsub.get_message(timeout=BLOCK_S)  # that it holds: no signal from here on is missed
            yield Signals(pubsub)


class Signals:
    """Wakes the registry's loop early; the loop is level-triggered and would find the same on its next turn."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    async def wait(self, *, timeout_s: float) -> bool:
        """True where a signal came within `timeout_s`."""
        message = await wait_for_answer(
            lambda wait_s: self._pubsub.get_message(ignore_subscribe_messages=True, timeout=wait_s), timeout_s=timeout_s
        )
        return bool(message)


def _rows(flat: list[Any], width: int) -> Iterator[tuple[Any, ...]]:
    return zip(*[iter(flat)] * width, strict=True)


def _known(rate: bytes) -> float | None:
    return float(rate) if rate else None


def _or_empty(value: int | None) -> str | int:
    return "" if value is None else value
