"""The control loop: observe, decide, act, publish. One leader among the registry's processes, by a PostgreSQL advisory lock.

It is level-triggered: a turn looks at everything, so that a signal that is lost, a turn that is cut short, or a restart costs
a second and nothing else. It survives outages of PostgreSQL and Redis by waiting them out. What goes wrong over one node,
version or decision costs that one alone; a loop whose turns fail says so (`fault`), to /readyz and to the gateways.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from services.process.outage import Outage
from services.protocol.errors import CorralError, Unavailable
from services.protocol.queue import Queue, Signals
from services.protocol.reports import NodeReport, NodeReports
from services.protocol.routes import LOCAL_CALLER
from services.registry.control.cluster_state import ClusterState, Policy
from services.registry.control.decisions import Decision, FailReplica, ReplicaDecision
from services.registry.control.executor import Executor
from services.registry.control.leadership import Leadership, leadership
from services.registry.control.load_state import LastSeen, Reports, load_cluster_state
from services.registry.control.quarantine import decide
from services.registry.database import jobs, nodes, replicas
from services.registry.database.database import Database
from services.registry.metrics import Metrics, MetricsSample
from services.registry.publish import Publisher
from services.registry.states import ReplicaState

log = logging.getLogger(__name__)

#: Seconds between turns: at least while signals pour in; at most while something is on its way; at most otherwise.
MIN_TURN_INTERVAL_S = 0.05
BUSY_TURN_INTERVAL_S = 0.2
MAX_TURN_INTERVAL_S = 1.0

#: A decision often calls for the next: that many turns follow each other without waiting.
TURNS_IN_A_ROW = 8

#: Turns that fail one after the other until the loop counts as failing.
FAILED_TURNS = 3

PRUNE_INTERVAL_S = 600.0
KEEP_REPLICAS = timedelta(days=1)
KEEP_JOBS = timedelta(days=7)

_TRANSITIONAL = (ReplicaState.PENDING, ReplicaState.FETCHING, ReplicaState.STARTING, ReplicaState.DRAINING)


class ControlLoop:
    def __init__(
        self,
        *,
        database: Database,
        queue: Queue,
        node_reports: NodeReports,
        publisher: Publisher,
        executor: Executor,
        policy: Policy,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._queue = queue
        self._node_reports = node_reports
        self._publisher = publisher
        self._executor = executor
        self._policy = policy
        self._metrics = metrics
        self._outage = Outage(log)
        self._pruned_at = float("-inf")
        self._failed_turns = 0
        #: Why it does nothing, empty while it works.
        self.fault = ""

    async def run(self) -> None:
        """Runs until cancelled: leads if no other process does, otherwise stands by."""
        while True:
            try:
                async with leadership(self._database) as lead, self._queue.signals() as signals:
                    if lead:
                        await self._lead(lead, signals)
                self._outage.over("control loop")
                await asyncio.sleep(MAX_TURN_INTERVAL_S)
            except Unavailable as error:
                await self._outage.wait("control loop", error)
            except Exception as error:
                # The platform without its control loop is worse off than with one bad turn.
                log.exception("control loop turn failed: failed_turns=%d", self._failed_turns + 1)
                await self._count_failure(error)
                await asyncio.sleep(MAX_TURN_INTERVAL_S)
            finally:
                self._metrics.clear()

    async def _count_failure(self, error: Exception) -> None:
        self._failed_turns += 1
        if self._failed_turns < FAILED_TURNS:
            return
        self.fault = f"the control loop fails ({type(error).__name__}); the registry's log has the traceback"
        try:
            await self._publisher.publish_fault(self.fault)
        except Unavailable as unavailable:
            log.warning("control loop's fault not published to the gateways: error=%r", unavailable.message)

    def _count_success(self) -> None:
        if self.fault:
            log.warning("control loop recovered: failed_turns=%d", self._failed_turns)
        self._failed_turns, self.fault = 0, ""

    async def _lead(self, lead: Leadership, signals: Signals) -> None:
        last_seen = LastSeen()
        await self._executor.follow_platform()
        while True:
            started = time.monotonic()
            await lead.require()
            busy = await self._settle(lead, last_seen)
            self._outage.over("control loop")
            await self._prune()
            await signals.wait(timeout_s=BUSY_TURN_INTERVAL_S if busy else MAX_TURN_INTERVAL_S)
            await asyncio.sleep(max(0.0, started + MIN_TURN_INTERVAL_S - time.monotonic()))
            while await signals.wait(timeout_s=0):
                pass

    async def _settle(self, lead: Leadership, last_seen: LastSeen) -> bool:
        """Turns until nothing is left to decide. True while something is on its way."""
        busy = False
        for _ in range(TURNS_IN_A_ROW):
            decided, busy = await self._turn(lead, last_seen)
            if not decided:
                break
        return busy

    async def _turn(self, lead: Leadership, last_seen: LastSeen) -> tuple[bool, bool]:
        """Whether it changed anything, and whether something is on its way."""
        started = time.perf_counter()
        cluster = await self._observe(last_seen)
        verdict = decide(cluster)
        for version, fault in verdict.faults.items():
            log.error("version left out of decisions: version=%s error=%r", version[:12], fault)
        acted = []
        for decision in verdict.decisions:
            await lead.require()
            acted.append(await self._act(cluster, decision))
        routes = await self._publisher.publish(fault="")
        teams = {caller.id: caller.team or caller.name for caller in (LOCAL_CALLER, *routes.callers.values())}
        self._metrics.record(MetricsSample(cluster, await self._queue.depths(), teams))
        self._count_success()
        seconds = time.perf_counter() - started
        self._metrics.turns.observe(seconds)
        log.debug("control loop turn: decisions=%d ms=%.1f", len(acted), seconds * 1000)
        return any(acted), any(replica.state in _TRANSITIONAL for replica in cluster.replicas)

    async def _act(self, cluster: ClusterState, decision: Decision) -> bool:
        """False if it failed. The others are acted on all the same, and its replica fails with that as the reason."""
        try:
            await self._executor.act(decision)
            self._metrics.decided(cluster, decision)
        except Unavailable:
            raise
        except Exception as error:
            log.exception("decision failed: %s", decision)
            if isinstance(decision, ReplicaDecision) and not isinstance(decision, FailReplica):
                reason = f"the registry could not carry out {type(decision).__name__} ({type(error).__name__})"
                await self._act(cluster, FailReplica(decision.replica, decision.seen, CorralError.code, reason))
            return False
        return True

    async def _observe(self, last_seen: LastSeen) -> ClusterState:
        reports = await Reports.read(self._queue, self._node_reports)
        last_seen.record_agents(await self._record(reports.nodes))
        async with self._database.snapshot() as session:
            return await load_cluster_state(session, reports, last_seen, self._policy)

    async def _record(self, reports: Sequence[NodeReport]) -> dict[str, datetime]:
        """In one transaction; if that fails, each node's report in its own, so that a bad one is passed over alone. Returns the
        nodes that have a new agent."""
        try:
            async with self._database.transaction() as session:
                return await nodes.record(session, reports)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a report holds
            if len(reports) == 1:
                log.error("node report not recorded: node=%s error=%s", reports[0].node, type(error).__name__)
                return {}
            started: dict[str, datetime] = {}
            for report in reports:
                started |= await self._record([report])
            return started

    async def _prune(self) -> None:
        if time.monotonic() - self._pruned_at < PRUNE_INTERVAL_S:
            return
        async with self._database.transaction() as session:
            await replicas.prune(session, older_than=KEEP_REPLICAS)
            await jobs.prune(session, older_than=KEEP_JOBS)
        self._pruned_at = time.monotonic()
