"""Which gateways live, and what becomes of the requests of one that died.

Keys: `<prefix>:gateways` is the set of gateways that have not taken their leave, `<prefix>:gateway:<id>` a string that expires with
that gateway's lease and holds the address of its metrics, `<prefix>:burial:<id>` another while somebody cleans up after it. A gateway writes its own lease; every
gateway and every worker looks for leases that have ended, so that the last one left is enough.
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from redis.asyncio import Redis

from services.protocol.connection import redis_answers
from services.protocol.errors import Unavailable
from services.protocol.queue import Queue
from services.protocol.records import Records

#: A gateway is gone when it was silent for the lease and at two looks after that. Two: behind a Redis that stood still every
#: lease seems to have ended, until the gateways' own calls have come through.
LEASE_MS = 2000
KEEP_S = 0.4
LOOK_S = 0.4

_BURIAL_MS = 10_000
_ROUNDS = 10

log = logging.getLogger(__name__)


class Gateways:
    """Raises Unavailable when Redis does not answer. `metrics` is the `host:port` at which the gateway that uses this serves its own,
    empty where it serves none."""

    def __init__(self, redis: Redis, queue: Queue, *, metrics: str = "", prefix: str = "corral") -> None:
        self._redis = redis
        self._queue = queue
        self._records = Records(redis, prefix=prefix)
        self._metrics = metrics
        self._prefix = prefix

    async def keep(self, gateway: str, *, lease_ms: int = LEASE_MS) -> None:
        async with redis_answers(), self._redis.pipeline() as pipe:
            pipe.sadd(f"{self._prefix}:gateways", gateway)
            pipe.set(f"{self._prefix}:gateway:{gateway}", self._metrics, px=lease_ms)
            await pipe.execute()

    async def withdraw(self, gateway: str) -> None:
        """It stops in order and leaves nothing behind."""
        async with redis_answers(), self._redis.pipeline() as pipe:
            pipe.srem(f"{self._prefix}:gateways", gateway)
            pipe.delete(f"{self._prefix}:gateway:{gateway}")
            await pipe.execute()

    async def metrics(self) -> list[str]:
        """Where gateways that live serve their metrics."""
        async with redis_answers():
            members = cast("set[bytes]", await self._redis.smembers(f"{self._prefix}:gateways"))
            if not members:
                return []
            found = await self._redis.mget([f"{self._prefix}:gateway:{member.decode()}" for member in members])
        return sorted(address.decode() for address in cast("list[bytes | None]", found) if address)

    async def silent(self) -> set[str]:
        """Those whose lease has ended."""
        async with redis_answers():
            members = cast("set[bytes]", await self._redis.smembers(f"{self._prefix}:gateways"))
            known = sorted(member.decode() for member in members)
            if not known:
                return set()
            leases = await self._redis.mget([f"{self._prefix}:gateway:{gateway}" for gateway in known])
        return {gateway for gateway, lease in zip(known, leases, strict=True) if lease is None}

    async def bury(self, gateway: str) -> None:
        """Takes its waiting requests out of their queues and tells the workers to abort the others. Does nothing where somebody else
        does it just now."""
        async with redis_answers():
            if not await self._redis.set(f"{self._prefix}:burial:{gateway}", b"", px=_BURIAL_MS, nx=True):
                return
        taken_back: set[str] = set()
        # Those that were claimed since they were listed are there once more, under another epoch.
        for _ in range(_ROUNDS):
            left = await self._records.sent_by(gateway)
            if not left:
                break
            taken_back.update(request for request, _, _ in left)
            for request, epoch, cost in left:
                if await self._queue.cancel(request) == "claimed":
                    await self._queue.settle(request, epoch, cost=cost)
        await self.withdraw(gateway)
        async with redis_answers():
            await self._redis.delete(f"{self._prefix}:burial:{gateway}", f"{self._prefix}:replies:{gateway}")
        log.warning("gateway %s is gone; took back %d requests of it", gateway, len(taken_back))

    async def watch(self) -> None:
        """For ever: buries the gateways that are gone."""
        suspected: set[str] = set()
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                silent = await self.silent()
                for gateway in silent & suspected:
                    await self.bury(gateway)
                suspected = silent
            except Unavailable:
                suspected = set()
