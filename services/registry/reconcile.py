"""Wanted and observed in, decisions out. Pure, level-triggered: the same world gives the same decisions whatever happened
before, and a world in which all is as wanted gives none.

Each part below looks at one kind of thing. Where two parts decide about one replica, the writer drops the second: every
decision carries the state that it was made on.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.protocol.errors import ModelLoadFailed, ModelNotFound, Unavailable
from services.registry.backoff import is_permanent
from services.registry.decisions import (
    CreateReplica,
    Decision,
    DrainReplica,
    EndProcess,
    FailJob,
    FailReplica,
    ForgetDemand,
    ForgetVersion,
    LoseNode,
    RefuseWaiting,
    SendJob,
    StopReplica,
    UnwantDeployment,
    WantVersion,
)
from services.registry.observed import observed_replica
from services.registry.placing import assign_pending, never_placed
from services.registry.states import JobKind, JobState, NodeState, Origin, ReplicaState
from services.registry.world import DeploymentView, JobView, ReplicaView, World

#: For so long after a permanent failure its answer is given again without trying.
PERMANENT_ANSWER_S = 10.0

#: A worker drains for 30 seconds at most; one that still runs then is told again.
DRAIN_PATIENCE_S = 60.0

#: An unanswered job is sent again after the policy's time, doubled up to this many times.
RESEND_DOUBLINGS = 5


def reconcile(world: World) -> tuple[Decision, ...]:
    return (
        *_nodes(world),
        *_live_replicas(world),
        *_demand(world),
        *_deployments(world),
        *assign_pending(world),
        *_orphans(world),
        *_jobs(world),
        *_garbage(world),
    )


def _nodes(world: World) -> Iterator[Decision]:
    """A gap in our own watching is no fault of the nodes."""
    for node in world.nodes.values():
        unseen_s = world.age_s(max(node.last_seen_at, world.watching_since))
        if node.state is NodeState.READY and not node.reporting and unseen_s > world.policy.node_lost_after_s:
            yield LoseNode(node.name)


def _live_replicas(world: World) -> Iterator[Decision]:
    for replica in world.replicas:
        if replica.state.is_over:
            continue
        decision = observed_replica(world, replica)
        if decision is None:
            continue
        yield decision
        if isinstance(decision, FailReplica) and replica.state in (ReplicaState.FETCHING, ReplicaState.STARTING):
            yield from _refuse_after_failed_load(world, replica, decision)


def _refuse_after_failed_load(world: World, failed: ReplicaView, decision: FailReplica) -> Iterator[Decision]:
    """A lost node is nobody's fault: the requests wait for the next replica."""
    others = [replica for replica in world.live(failed.version) if replica.state is ReplicaState.READY]
    if not others and world.waiting(failed.version) and world.node_is_ready(failed.node):
        yield RefuseWaiting(failed.version, decision.code, load_failure(world, failed.version, decision.reason))


def load_failure(world: World, version: str, reason: str) -> str:
    view = world.versions.get(version)
    return f"model '{view.shown if view else version[:12]}' could not be loaded: {reason}"


def _demand(world: World) -> Iterator[Decision]:
    for demand in world.demand.values():
        version = world.versions.get(demand.version)
        if version is None or not version.wanted:
            if demand.waiting:
                name = version.shown if version else demand.version[:12]
                yield RefuseWaiting(demand.version, ModelNotFound.code, f"model '{name}' not found")
            elif not world.live(demand.version):
                yield ForgetDemand(demand.version)
        elif demand.waiting:
            yield from _wanted_version(world, demand.version)
        elif not _is_wanted(world, demand.version) and not world.live(demand.version):
            yield ForgetDemand(demand.version)


def _is_wanted(world: World, version: str) -> bool:
    return any(deployment.replicas_wanted for deployment in world.deployments if deployment.version == version)


def _wanted_version(world: World, version: str) -> Iterator[Decision]:
    """Requests wait. Unless something serves or will, load it; where that cannot work, say so now."""
    if any(
        replica.state is not ReplicaState.DRAINING and replica.state is not ReplicaState.PENDING
        for replica in world.live(version)
    ):
        return
    if reason := never_placed(world, version):
        yield RefuseWaiting(version, ModelLoadFailed.code, load_failure(world, version, reason))
    elif (failed := _permanent_failure(world, version)) is not None:
        yield RefuseWaiting(version, failed.error_code, load_failure(world, version, failed.reason))
    elif not _is_wanted(world, version):
        yield WantVersion(version)


def _permanent_failure(world: World, version: str) -> ReplicaView | None:
    for replica in world.replicas:
        permanent = replica.state is ReplicaState.FAILED and is_permanent(replica.error_code)
        same = replica.version == version and replica.runs_as(world.deployment(replica))
        if permanent and same and world.age_s(replica.state_changed_at) < PERMANENT_ANSWER_S:
            return replica
    return None


def _deployments(world: World) -> Iterator[Decision]:
    for deployment in world.deployments:
        live = [replica for replica in world.live(deployment.version) if replica.deployment == deployment.id]
        serving = [replica for replica in live if replica.state is not ReplicaState.DRAINING]
        wanted = deployment.replicas_wanted
        if wanted and (unwanted := _unwanted(world, deployment, live)):
            yield unwanted
        elif len(serving) < wanted:
            yield from _next_attempt(world, deployment)
        elif len(serving) == len(live):
            yield from _replacement(world, deployment, serving)
        for surplus in sorted(serving, key=_least_missed)[wanted:]:
            yield _end(
                surplus, world.versions[deployment.version].wanted, deployment.reason or "its deployment wants fewer replicas"
            )


def _unwanted(world: World, deployment: DeploymentView, live: list[ReplicaView]) -> UnwantDeployment | None:
    version, policy = world.versions[deployment.version], world.policy
    if not version.wanted:
        return UnwantDeployment(deployment.id, deployment.version, "the model was deleted", unused=False)
    if deployment.origin is Origin.PINNED or world.waiting(deployment.version):
        return None
    if all(replica.state is ReplicaState.PENDING for replica in live):
        return UnwantDeployment(deployment.id, deployment.version, "nothing waits for it any more", unused=True)
    demand = world.demand.get(deployment.version)
    keep_alive_ms = policy.keep_alive_s * 1000 if demand is None or demand.keep_alive_ms is None else demand.keep_alive_ms
    if keep_alive_ms < 0 or not all(world.is_idle(replica) for replica in live):
        return None
    if min(world.unused_ms(replica) for replica in live) <= keep_alive_ms:
        return None
    return UnwantDeployment(deployment.id, deployment.version, "unused for longer than its keep_alive", unused=True)


def _next_attempt(world: World, deployment: DeploymentView) -> Iterator[Decision]:
    if deployment.origin is Origin.ON_DEMAND and not world.waiting(deployment.version):
        return
    last = next((replica for replica in world.replicas if replica.deployment == deployment.id and replica.state.is_over), None)
    if last is None or last.state is not ReplicaState.FAILED or not last.runs_as(deployment):
        yield CreateReplica(deployment.id, attempts=1)
    elif last.retry_at is None:
        if world.waiting(deployment.version) and _permanent_failure(world, deployment.version) is None:
            yield CreateReplica(deployment.id, attempts=last.attempts + 1)
    elif last.retry_at <= world.now:
        yield CreateReplica(deployment.id, attempts=last.attempts + 1)


def _replacement(world: World, deployment: DeploymentView, serving: list[ReplicaView]) -> Iterator[Decision]:
    """One after the other: the next goes when all that have the present settings serve."""
    outdated = [replica for replica in serving if not replica.runs_as(deployment)]
    if outdated and all(replica.state is ReplicaState.READY or replica in outdated for replica in serving):
        yield _end(outdated[0], world.versions[deployment.version].wanted, "its settings have changed")


_SERVES_BEST_FIRST = (ReplicaState.READY, ReplicaState.STARTING, ReplicaState.FETCHING, ReplicaState.PENDING)


def _least_missed(replica: ReplicaView) -> tuple[int, str]:
    """Sorts what serves before what does not yet, and the older before the younger."""
    return _SERVES_BEST_FIRST.index(replica.state), replica.id


def _end(replica: ReplicaView, tagged: bool, reason: str) -> Decision:
    reason = reason if tagged else "the model was deleted"
    if replica.state in (ReplicaState.PENDING, ReplicaState.FETCHING) or replica.node is None:
        return StopReplica(replica.id, replica.state, reason)
    return DrainReplica(replica.id, replica.state, replica.node, reason)


def _orphans(world: World) -> Iterator[Decision]:
    """Processes of replicas that are over, unknown, or meant for another node; and those that should be draining."""
    wanted = {(replica.id, replica.node) for replica in world.replicas if _may_run(world, replica)}
    for process in world.processes:
        if not process.runs or (process.replica, process.node) in wanted:
            continue
        stop = world.job(JobKind.STOP, process.replica)
        if stop is None or stop.node != process.node or stop.state.is_over:
            yield EndProcess(process.replica, process.node)


def _may_run(world: World, replica: ReplicaView) -> bool:
    if replica.state is ReplicaState.DRAINING:
        return world.age_s(replica.state_changed_at) < DRAIN_PATIENCE_S
    return replica.state in (ReplicaState.STARTING, ReplicaState.READY)


def _jobs(world: World) -> Iterator[Decision]:
    for job in world.jobs:
        if job.state.is_over:
            continue
        if moot := _moot(world, job):
            yield FailJob(job.id, job.node, Unavailable.code, moot)
        elif _due(world, job):
            yield SendJob(job.id)


def _moot(world: World, job: JobView) -> str | None:
    """Why nobody needs the job's outcome any more. What to delete stays to be deleted until the node is back."""
    if not world.node_is_ready(job.node):
        return None if job.kind is JobKind.DELETE else f"node {job.node} is lost"
    runs = {replica.id for replica in world.replicas if replica.state in (ReplicaState.STARTING, ReplicaState.READY)}
    return "its replica is not wanted any more" if job.kind is JobKind.START and job.replica not in runs else None


def _due(world: World, job: JobView) -> bool:
    node = world.nodes.get(job.node)
    if node is None or node.state is not NodeState.READY:
        return False
    if job.state is JobState.QUEUED:
        return job.kind is not JobKind.DELETE or not _serves_untagged(world, job)
    if job.sent_at is None or job.id in node.jobs or not node.reporting:
        return False
    quiet_since = max(job.sent_at, world.watching_since, world.job_seen.get(job.id, job.sent_at))
    patience_s: float = world.policy.job_resend_after_s * 2 ** min(job.sends - 1, RESEND_DOUBLINGS)
    return world.age_s(quiet_since) > patience_s


def _serves_untagged(world: World, job: JobView) -> bool:
    """A version's files go from a node once its replicas there have drained; while another tag names it they stay anyway."""
    version = world.versions.get(job.version or "")
    if version is None or version.wanted:
        return False
    return any(replica.node == job.node for replica in world.live(version.digest))


def _garbage(world: World) -> Iterator[Decision]:
    for version in world.versions.values():
        if not version.wanted and not world.live(version.digest) and not world.waiting(version.digest):
            yield ForgetVersion(version.digest)
