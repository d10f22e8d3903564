"""The queue of requests in Redis. Its keys are drawn in queue_script/keys.lua.

Each method is one call of a Lua script, so each is atomic. Gateways enqueue, cancel and settle requests, and requeue those whose worker
was lost. Workers claim requests, report and leave. The registry reads demand and workers, and refuses requests that cannot be served.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal, cast

import msgspec
from redis.asyncio import Redis

from services.protocol.connection import MAX_BLOCK_S, MEMORY_FULL, redis_answers, wait_for_answer, write_allowing_oom
from services.protocol.errors import CallerLimited, ProtocolMismatch, QueueFull, QueueMemoryFull
from services.protocol.lua_module import LuaModule
from services.protocol.messages import Cancel, Claim, Committed, Control, Crash, Request, Wake
from services.protocol.prefixes import Prefix, pack
from services.protocol.reports import WorkerReport, WorkerState
from services.protocol.scripts import Scripts
from services.protocol.waiting import Priority, QueuePosition, Terms, VersionQueue, place, retry_after_s
from services.protocol.wire import Decoder, encode

#: Longer than any request takes. It bounds what a crashed gateway can leave behind.
REQUEST_TTL_MS = 24 * 3600 * 1000

#: After this wait, the first request of a band gets a share of the claims although more urgent bands have requests.
AGING_MS = 10_000

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
    """How a version is in demand. `keep_alive_ms` is negative for "forever", None for the platform's default. `context_tokens` is the
    longest context that a request has asked for since the version was loaded, 0 if none did. `name` is the model's name in the newest
    request, empty if unknown."""

    version: str
    waiting: int
    unused_ms: int
    keep_alive_ms: int | None
    context_tokens: int = 0
    name: str = ""


class LostRequest(msgspec.Struct, frozen=True):
    """A claim whose worker's lease has ended. `crashed`: its process ended by its own fault."""

    request: str
    epoch: int
    worker: str
    crashed: bool


class RefusedRequest(msgspec.Struct, frozen=True):
    """A waiting request that left its queue without being served."""

    request: str
    epoch: int
    gateway: str


@dataclass(frozen=True)
class Unreadable:
    """A claimed request that does not decode. The worker that claimed it owes its gateway a Failed event."""

    request: str
    epoch: int
    gateway: str
    reason: str


def _argument(value: object) -> object:
    """Text and bytes as MessagePack's str 32: Lua has one type for both, and Redis's cmsgpack cannot read `bin`."""
    if isinstance(value, list):
        return [_argument(item) for item in value]
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return msgspec.Raw(b"\xdb" + len(value).to_bytes(4, "big") + value)
    return value


#: The files of queue_script, in the order in which they use each other.
SCRIPT_FILES = ("keys", "demand", "workers", "waiting", "requests", "claims", "gateways")


@cache
def queue_scripts() -> dict[str, str]:
    """The script of each command of the queue."""
    folder = resources.files("services.protocol") / "queue_script"
    return LuaModule((folder / f"{name}.lua").read_text() for name in SCRIPT_FILES).scripts()


class QueueScript:
    """The commands that make every change to the queue."""

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._scripts = Scripts(redis, queue_scripts())
        self._namespace = namespace

    async def call(self, command: str, **arguments: object) -> Any:
        """An argument that is None is not sent. Raises Unavailable."""
        sent = msgspec.msgpack.encode({name: _argument(value) for name, value in arguments.items() if value is not None})
        async with redis_answers():
            return await self._scripts.call(command, [self._namespace], [sent])


@dataclass(frozen=True)
class ClaimResult:
    """Try again after `again_s`: some requests are held back for a worker with a warmer cache. None: wait for a Wake."""

    claims: list[Claim]
    again_s: float | None
    unreadable: list[Unreadable] = field(default_factory=list)


class Queue:
    """Raises Unavailable from every method when Redis does not answer."""

    def __init__(self, redis: Redis, *, namespace: str = "corral", aging_ms: int = AGING_MS) -> None:
        self._redis = redis
        self._namespace = namespace
        self._aging_ms = aging_ms
        self._unanswered: dict[str, str] = {}
        self._script = QueueScript(redis, namespace)

    async def enqueue(
        self,
        request: Request,
        *,
        cost: float,
        limit: int,
        terms: Terms = _PLAIN_TERMS,
        keep_alive_ms: int | None = None,
        begins: tuple[Prefix, ...] = (),
        resumption: tuple[Committed, ...] | None = None,
        context_tokens: int = 0,
        name: str = "",
    ) -> QueuePosition:
        """Puts the request in its version's queue.

        `cost` is the estimate in tokens, `begins` the prefixes of its prompt that a worker may have cached. `resumption` is what
        the client has of an answer that the queue has lost: such a request is not refused and goes first. `name` is what the request
        calls the model. Raises QueueMemoryFull if Redis has too little memory left; QueueFull if `limit` requests wait, or if it is
        likely to wait for more than half of its time; CallerLimited if the caller has as many waiting as it may.
        """
        outcome, _, position, rate = await self._script.call(
            "enqueue",
            id=request.id,
            version=request.version,
            gateway=request.gateway,
            caller=request.caller,
            payload=encode(_RequestEnvelope(request)),
            cost=cost,
            weight=terms.weight,
            band=terms.priority.band,
            limit=limit,
            caller_limit=terms.caller_limit,
            timeout_ms=terms.timeout_ms,
            keep_alive_ms=keep_alive_ms,
            ttl_ms=REQUEST_TTL_MS,
            wake=_WAKE,
            prefixes=pack(begins),
            resumption=None if resumption is None else _resumption(resumption),
            context_tokens=context_tokens or None,
            name=name or None,
        )
        per_second = _known(rate)
        match outcome.decode():
            case "queued":
                return place(position, per_second)
            case "no memory":
                raise QueueMemoryFull(MEMORY_FULL)
            case "full" | "hopeless":
                raise QueueFull(
                    "too many requests are waiting for this model", retry_after_s=retry_after_s(position, per_second)
                )
            case _:
                message = "too many of your requests are waiting for this model: let some finish before you send more"
                raise CallerLimited(message, retry_after_s=retry_after_s(position, per_second))

    async def claim(self, version: str, worker: str, *, capacity: int, dropped: Collection[bytes] = ()) -> ClaimResult:
        """Takes up to `capacity` requests in fair order. It leaves requests to other workers, for a moment, that have much more of the
        prompt cached. A worker that gets fewer requests than it asked for will find a Wake in its inbox.

        `dropped` are the digests of prefixes that the worker no longer has cached; the prefixes of all other requests that it ever
        claimed count as cached. A worker without a lease (see `report`) gets nothing. One call at a time for each worker: if a call
        failed, Redis may have carried it out, and the worker's next call returns the claims of both.
        """
        repeated = worker in self._unanswered
        claim = self._unanswered.setdefault(worker, secrets.token_hex(8))
        again_ms, *flat = await self._script.call(
            "claim",
            version=version,
            worker=worker,
            capacity=capacity,
            ttl_ms=REQUEST_TTL_MS,
            claim=claim,
            repeated=repeated,
            aging_ms=self._aging_ms,
            dropped=list(dropped),
        )
        del self._unanswered[worker]
        claims, unreadable = [], []
        for request, epoch, payload, resumption, held in _rows(flat, 5):
            try:
                committed = _decode_resumption(resumption).committed if resumption else ()
                claims.append(Claim(_decode_request(payload).request, epoch, committed, held))
            except ProtocolMismatch as mismatch:
                unreadable.append(
                    Unreadable(request.decode(), epoch, await self._gateway_of(request.decode()), mismatch.message)
                )
        return ClaimResult(claims, None if again_ms == b"" else again_ms / 1000, unreadable)

    async def _gateway_of(self, request: str) -> str:
        async with redis_answers():
            gateway = cast("bytes | None", await self._redis.hget(f"{self._namespace}:request:{request}", "gateway"))
        return gateway.decode() if gateway else ""

    async def settle(self, request: str, epoch: int, *, cost: float) -> bool:
        """Ends the request and charges what it cost. False if that claim is no longer the current one."""
        return bool(await self._script.call("settle", id=request, epoch=epoch, cost=cost))

    async def cancel(self, request: str) -> Literal["waiting", "claimed", "gone"]:
        """Removes a waiting request from its queue, or tells the worker that holds it; then a terminal event still comes."""
        outcome: bytes = await self._script.call("cancel", id=request, message=cancel_message(request))
        return cast('Literal["waiting", "claimed", "gone"]', outcome.decode())

    async def expire(self, request: str) -> bool:
        """Removes a request that has waited for too long. False if a worker has claimed it."""
        return bool(await self._script.call("expire", id=request))

    async def place(self, request: str) -> QueuePosition | None:
        """None if it does not wait."""
        found = await self._script.call("place", id=request)
        return place(found[0], _known(found[1])) if found else None

    async def requeue(self, request: str, epoch: int, committed: tuple[Committed, ...] = ()) -> bool:
        """Puts a lost request back in its old place, under the next epoch; its next claim has what was `committed`. False if the
        claim is no longer current."""
        resumption = _resumption(committed)
        done = await self._script.call(
            "requeue", id=request, epoch=epoch, ttl_ms=REQUEST_TTL_MS, wake=_WAKE, resumption=resumption
        )
        return bool(done)

    async def report(self, report: WorkerReport, *, lease_ms: int) -> None:
        """Publishes the worker's state and extends its lease. Wakes it if it has a free slot and requests wait."""
        free = max(0, report.slots - report.running) if report.state is WorkerState.READY else None
        await self._script.call(
            "report",
            worker=report.worker,
            version=report.version,
            report=encode(report),
            lease_ms=lease_ms,
            wake=_WAKE,
            free=free,
        )

    async def leave(self, worker: str, version: str, *, crashed: bool = False) -> None:
        """Ends the worker's lease: the requests that it still holds are lost from now on. `crashed`: its process ended by its own
        fault, which one of them may have caused."""
        await self._script.call("leave", worker=worker, version=version, crashed=crashed)

    async def lost(self, gateway: str) -> list[LostRequest]:
        flat = await self._script.call("lost", gateway=gateway)
        return [
            LostRequest(request.decode(), epoch, worker.decode(), bool(crashed))
            for request, epoch, worker, crashed in _rows(flat, 4)
        ]

    async def crashed(self, workers: Iterable[str]) -> frozenset[str]:
        """Which of the workers' processes ended by their own fault. Known for a minute after their end."""
        return frozenset(worker.decode() for worker in await self._script.call("crashed", workers=list(workers)))

    async def workers(self) -> list[WorkerReport]:
        """The reports of the workers whose lease holds."""
        return _reports(await self._script.call("workers"))

    async def departed(self) -> list[WorkerReport]:
        """The last reports of the workers that left within the last minute."""
        return _reports(await self._script.call("departed"))

    async def touch(self, version: str, *, keep_alive_ms: int | None) -> None:
        """Counts as a use of the version. With a keep_alive of 0 it is unloaded as soon as it is idle."""
        await self._script.call("touch", version=version, keep_alive_ms=keep_alive_ms)

    async def request_context(self, version: str, tokens: int) -> None:
        """Asks the registry for a context of this many tokens, from when the version is idle until it is unloaded."""
        await self._script.call("request_context", version=version, tokens=tokens)

    async def demand(self) -> list[Demand]:
        flat = await self._script.call("demand")
        return [
            Demand(
                version.decode(), waiting, unused_ms, int(keep_alive) if keep_alive else None, int(context or 0), name.decode()
            )
            for version, waiting, unused_ms, keep_alive, context, name in _rows(flat, 6)
        ]

    async def depths(self, *, caller: str | None = None) -> list[VersionQueue]:
        """For every version that was asked for. With a `caller`, `callers` lists only that one."""
        rows = _rows(await self._script.call("depths", caller=caller), 7)
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
        """Drops the record of demand for a version that was unloaded. False if requests wait for it again."""
        return bool(await self._script.call("forget", version=version))

    async def refuse(self, version: str) -> list[RefusedRequest]:
        """Removes every waiting request from the queue. The caller owes each of them a Failed event."""
        flat = await self._script.call("refuse", version=version)
        return [RefusedRequest(request.decode(), epoch, gateway.decode()) for request, epoch, gateway in _rows(flat, 3)]

    async def signal(self) -> None:
        """Wakes the registry's loop after a change of its rows."""
        async with redis_answers():
            await self._redis.publish(f"{self._namespace}:signal", "registry")

    async def crash(self, worker: str) -> None:
        """Makes the worker kill its own process."""
        async with redis_answers():
            await write_allowing_oom(
                self._redis, "LPUSH", f"{self._namespace}:inbox:{worker}", encode(_ControlEnvelope(Crash()))
            )

    async def next_control(self, worker: str, *, timeout_s: float) -> Control | None:
        """The next message in the worker's inbox. None after `timeout_s`, or if the message does not decode."""
        inbox = [f"{self._namespace}:inbox:{worker}"]
        entry = await wait_for_answer(lambda wait_s: self._redis.blpop(inbox, timeout=wait_s), timeout_s=timeout_s)
        envelope = _decode_control.known(entry[1]) if entry else None
        return envelope.control if envelope else None

    @asynccontextmanager
    async def signals(self) -> AsyncIterator[Signals]:
        """A subscription to the signal that something may have to be done."""
        async with self._redis.pubsub() as pubsub:
            async with redis_answers():
                await pubsub.subscribe(f"{self._namespace}:signal")
                await pubsub.get_message(timeout=MAX_BLOCK_S)  # the confirmation: no signal from here on is missed
            yield Signals(pubsub)


class Signals:
    """Wakes the registry's loop early. The loop is level-triggered, so a lost signal costs one interval."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    async def wait(self, *, timeout_s: float) -> bool:
        """Whether a signal came within `timeout_s`."""
        message = await wait_for_answer(
            lambda wait_s: self._pubsub.get_message(ignore_subscribe_messages=True, timeout=wait_s), timeout_s=timeout_s
        )
        return bool(message)


def cancel_message(request: str) -> bytes:
    """For the inbox of the worker that holds the request."""
    return encode(_ControlEnvelope(Cancel(request)))


def _resumption(committed: tuple[Committed, ...]) -> bytes:
    return encode(_Resumption(committed)) if committed else b""


def _reports(found: Iterable[bytes]) -> list[WorkerReport]:
    reports = (_decode_report.known(report) for report in found)
    return [report for report in reports if report]


def _rows(flat: list[Any], width: int) -> Iterator[tuple[Any, ...]]:
    return zip(*[iter(flat)] * width, strict=True)


def _known(rate: bytes) -> float | None:
    return float(rate) if rate else None
