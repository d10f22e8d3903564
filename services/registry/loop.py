"""The control loop: observe, decide, act, publish. One leader among the registry's processes, by a PostgreSQL advisory lock.

It is level-triggered: a turn looks at everything, so that a signal that is lost, a turn that is cut short, or a restart costs
a second and nothing else. It survives outages of PostgreSQL and Redis by waiting them out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.protocol.errors import Unavailable
from services.protocol.queue import Queue, Signals
from services.protocol.reports import NodeReports
from services.protocol.routes import LOCAL_CALLER
from services.registry import jobs, nodes, replicas
from services.registry.actor import Actor
from services.registry.db import Database
from services.registry.metrics import Metrics, Sight
from services.registry.observe import Reports, Sightings, load_world
from services.registry.outage import Outage
from services.registry.publish import Publisher
from services.registry.reconcile import reconcile
from services.registry.states import ReplicaState
from services.registry.world import Policy, World

log = logging.getLogger(__name__)

#: Any number that nothing else in the database locks.
LEADER_LOCK = 7_262_411_803

#: Seconds between turns: at least while signals pour in; at most while something is on its way; at most otherwise.
SHORTEST_GAP_S = 0.05
BUSY_GAP_S = 0.2
LONGEST_GAP_S = 1.0

#: A decision often calls for the next: that many turns follow each other without waiting.
TURNS_IN_A_ROW = 8

PRUNE_EVERY_S = 600.0
KEEP_REPLICAS = timedelta(days=1)
KEEP_JOBS = timedelta(days=7)

_ON_THE_WAY = (ReplicaState.PENDING, ReplicaState.FETCHING, ReplicaState.STARTING, ReplicaState.DRAINING)


class ControlLoop:
    def __init__(
        self,
        *,
        database: Database,
        queue: Queue,
        node_reports: NodeReports,
        publisher: Publisher,
        actor: Actor,
        policy: Policy,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._queue = queue
        self._node_reports = node_reports
        self._publisher = publisher
        self._actor = actor
        self._policy = policy
        self._metrics = metrics
        self._outage = Outage("control loop", log)
        self._pruned_at = float("-inf")

    async def run(self) -> None:
        """For ever: leads where nobody else does, stands by otherwise."""
        while True:
            try:
                async with _leadership(self._database) as lock, self._queue.signals() as signals:
                    if lock:
                        await self._lead(lock, signals)
                self._outage.over()
                await asyncio.sleep(LONGEST_GAP_S)
            except Unavailable as error:
                await self._outage.wait(error)
            except Exception:
                # The platform without its control loop is worse off than with one bad turn.
                log.exception("control loop: a turn failed; looking again")
                await asyncio.sleep(LONGEST_GAP_S)
            finally:
                self._metrics.stands_by()

    async def _lead(self, lock: AsyncConnection, signals: Signals) -> None:
        sightings = Sightings()
        await self._actor.follow_platform()
        while True:
            started = time.monotonic()
            # Fails where the session that holds the lock is gone, and another process may lead.
            await lock.execute(text("select 1"))
            busy = await self._settle(sightings)
            self._outage.over()
            await self._prune()
            await signals.wait(timeout_s=BUSY_GAP_S if busy else LONGEST_GAP_S)
            await asyncio.sleep(max(0.0, started + SHORTEST_GAP_S - time.monotonic()))
            while await signals.wait(timeout_s=0):
                pass

    async def _settle(self, sightings: Sightings) -> bool:
        """Turns until nothing is left to decide. True while something is on its way."""
        busy = False
        for _ in range(TURNS_IN_A_ROW):
            decided, busy = await self._turn(sightings)
            if not decided:
                break
        return busy

    async def _turn(self, sightings: Sightings) -> tuple[bool, bool]:
        started = time.perf_counter()
        world = await self._observe(sightings)
        decisions = reconcile(world)
        for decision in decisions:
            await self._actor.act(decision)
            self._metrics.decided(world, decision)
        routes = await self._publisher.publish()
        teams = {caller.id: caller.team or caller.name for caller in (LOCAL_CALLER, *routes.callers.values())}
        self._metrics.saw(Sight(world, await self._queue.depths(), teams))
        seconds = time.perf_counter() - started
        self._metrics.turns.observe(seconds)
        log.debug("turn: %d decisions in %.1f ms", len(decisions), seconds * 1000)
        return bool(decisions), any(replica.state in _ON_THE_WAY for replica in world.replicas)

    async def _observe(self, sightings: Sightings) -> World:
        reports = await Reports.read(self._queue, self._node_reports)
        async with self._database.transaction() as session:
            await nodes.record(session, reports.nodes)
        async with self._database.snapshot() as session:
            return await load_world(session, reports, sightings, self._policy)

    async def _prune(self) -> None:
        if time.monotonic() - self._pruned_at < PRUNE_EVERY_S:
            return
        async with self._database.transaction() as session:
            await replicas.prune(session, older_than=KEEP_REPLICAS)
            await jobs.prune(session, older_than=KEEP_JOBS)
        self._pruned_at = time.monotonic()


@asynccontextmanager
async def _leadership(database: Database) -> AsyncIterator[AsyncConnection | None]:
    """The connection that holds the lock, None where another process leads. Its end is the lock's end."""
    async with database.connection() as connection:
        leads = await connection.scalar(text("select pg_try_advisory_lock(:lock)"), {"lock": LEADER_LOCK})
        try:
            yield connection if leads else None
        finally:
            await connection.invalidate()
