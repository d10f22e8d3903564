"""Gateway leases, and the clean-up of requests whose gateway died.

Keys (see queue_script/keys.lua): `<namespace>:gateways` is the set of registered gateways. `<namespace>:gateway:<id>` is a gateway's lease: it expires
unless the gateway renews it, and its value is the address of the gateway's metrics. `<namespace>:cleanup:<id>` is the lock of the process
that cleans up after the gateway. All gateways and workers watch for expired leases, so one surviving process is enough.

A gateway that only stalled may come back during the clean-up. Therefore each step of the clean-up runs only while the lease is
missing, and `renew` returns whether it was missing: if so, the gateway enqueues again the requests that were removed. After `renew`
none are removed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from services.protocol.connection import redis_answers, write_allowing_oom
from services.protocol.errors import Unavailable
from services.protocol.queue import QueueScript, cancel_message
from services.protocol.records import Records

#: How long a gateway's lease lasts.
LEASE_MS = 2000
#: Time between two renewals of a lease.
LEASE_RENEWAL_INTERVAL_S = 0.4
#: Time between two checks for expired leases. A gateway counts as dead after two checks in a row without a lease: after Redis has
#: hung, all leases are expired until the gateways' own renewals get through.
DEAD_CHECK_INTERVAL_S = 0.4

#: How long a reply stream lives after its gateway last renewed the lease.
STREAM_MS = 60_000

_CLEANUP_MS = 10_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Renewal:
    """The result of `renew`. If `had_lease` is false, the lease had expired and the gateway's requests may have been removed. If
    `had_stream` is false, the reply stream was missing and the events in it are lost."""

    had_lease: bool
    had_stream: bool


class Gateways:
    """Raises Unavailable if Redis does not answer. `metrics` is the `host:port` at which the calling gateway serves its metrics, empty
    if it serves none or if the caller is not a gateway."""

    def __init__(self, redis: Redis, *, metrics: str = "", namespace: str = "corral") -> None:
        self._redis = redis
        self._script = QueueScript(redis, namespace)
        self._records = Records(redis, namespace=namespace)
        self._metrics = metrics
        self._namespace = namespace

    async def renew(self, gateway: str, *, lease_ms: int = LEASE_MS, stream_ms: int = STREAM_MS) -> Renewal:
        """Extends the lease and the expiry of the reply stream. Creates both if they are missing."""
        had_lease, had_stream = await self._script.call(
            "renew", gateway=gateway, metrics=self._metrics, lease_ms=lease_ms, stream_ms=stream_ms
        )
        return Renewal(bool(had_lease), bool(had_stream))

    async def remove(self, gateway: str) -> None:
        """Removes a gateway that shuts down cleanly."""
        async with redis_answers(), self._redis.pipeline() as pipe:
            pipe.srem(f"{self._namespace}:gateways", gateway)
            pipe.delete(f"{self._namespace}:gateway:{gateway}")
            await pipe.execute()

    async def metrics(self) -> list[str]:
        """The metrics addresses of the gateways that hold a lease."""
        async with redis_answers():
            members = cast("set[bytes]", await self._redis.smembers(f"{self._namespace}:gateways"))
            if not members:
                return []
            found = await self._redis.mget([f"{self._namespace}:gateway:{member.decode()}" for member in members])
        return sorted(address.decode() for address in cast("list[bytes | None]", found) if address)

    async def silent(self) -> set[str]:
        """The registered gateways whose lease has expired."""
        async with redis_answers():
            members = cast("set[bytes]", await self._redis.smembers(f"{self._namespace}:gateways"))
            known = sorted(member.decode() for member in members)
            if not known:
                return set()
            leases = await self._redis.mget([f"{self._namespace}:gateway:{gateway}" for gateway in known])
        return {gateway for gateway, lease in zip(known, leases, strict=True) if lease is None}

    async def clean_up_dead(self, gateway: str) -> None:
        """Removes the gateway's waiting requests from their queues and tells workers to abort its running ones. Stops if the gateway
        renews its lease. Does nothing while another process holds the lock."""
        async with redis_answers():
            if not await write_allowing_oom(
                self._redis, "SET", f"{self._namespace}:cleanup:{gateway}", b"", "PX", _CLEANUP_MS, "NX"
            ):
                return
        num_taken_back = 0
        for request in await self._records.sent_by(gateway):
            if not await self._script.call("retract", gateway=gateway, id=request, message=cancel_message(request)):
                break
            num_taken_back += 1
        gone = await self._script.call("remove_gateway", gateway=gateway)
        async with redis_answers():
            await self._redis.delete(f"{self._namespace}:cleanup:{gateway}")
        log.warning("gateway lost: gateway=%s requests=%d back=%s", gateway, num_taken_back, not gone)

    async def watch(self) -> None:
        """Cleans up after dead gateways. Never returns."""
        suspected: set[str] = set()
        while True:
            await asyncio.sleep(DEAD_CHECK_INTERVAL_S)
            try:
                silent = await self.silent()
                for gateway in silent & suspected:
                    await self.clean_up_dead(gateway)
                suspected = silent
            except Unavailable:
                suspected = set()
