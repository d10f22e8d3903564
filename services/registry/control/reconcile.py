"""Compares wanted and observed state and returns decisions. Pure and level-triggered: only the current state counts, not how it
came about, and a cluster in its wanted state gives no decisions.

README.md in this folder describes the nine parts of `reconcile`. If two parts change the state of the same replica, the second
change is dropped: a decision applies only if the replica is still in the state that the decision was made on (`seen`).
"""

from __future__ import annotations

from collections.abc import Iterator

from services.protocol.errors import ModelLoadFailed, ModelNotFound, Unavailable
from services.registry.control.assign import assign_pending, never_placed
from services.registry.control.cluster_state import ClusterState, DeploymentView, JobView, ReplicaView
from services.registry.control.decisions import (
    Decision,
    EndProcess,
    FailJob,
    FailReplica,
    ForgetDemand,
    ForgetVersion,
    LoseNode,
    RefuseWaiting,
    SendJob,
    UnwantDeployment,
    WantVersion,
    WidenContext,
)
from services.registry.control.replica_health import replica_decision
from services.registry.control.rollout import permanent_failure, rollout, surplus, unnamed
from services.registry.control.unservable import unservable
from services.registry.states import JobKind, JobState, NodeState, Origin, ReplicaState

#: A draining replica whose process still runs after this long gets another Stop job. A worker drains for 30 s at most.
DRAIN_PATIENCE_S = 60.0

#: The wait before a job is sent again doubles with each send, at most this many times.
RESEND_DOUBLINGS = 5


def reconcile(cluster: ClusterState) -> tuple[Decision, ...]:
    """The decisions of one turn, in the order in which they are carried out. The numbers are those of README.md."""
    return (
        *_nodes(cluster),  # 1. nodes that stopped reporting
        *_live_replicas(cluster),  # 2. what reports and jobs say about live replicas
        *_demand(cluster),  # 3. versions that requests wait for
        *_contexts(cluster),  # 4. longer contexts
        *_deployments(cluster),  # 5. too many or too few replicas, outdated settings
        *assign_pending(cluster),  # 6. placement
        *_orphans(cluster),  # 7. processes that should not run
        *_jobs(cluster),  # 8. jobs to send, or to give up
        *_garbage(cluster),  # 9. versions that are not needed
    )


def _nodes(cluster: ClusterState) -> Iterator[Decision]:
    """Marks nodes as lost that stopped reporting. Time before this leader started to watch does not count."""
    for node in cluster.nodes.values():
        silent_s = cluster.age_s(max(node.last_seen_at, cluster.watching_since))
        if node.state is NodeState.READY and not node.reporting and silent_s > cluster.policy.node_lost_after_s:
            yield LoseNode(node.name)


def _live_replicas(cluster: ClusterState) -> Iterator[Decision]:
    for replica in cluster.replicas:
        if replica.state.is_over:
            continue
        decision = replica_decision(cluster, replica)
        if decision is None:
            continue
        yield decision
        if isinstance(decision, FailReplica) and replica.state in (ReplicaState.FETCHING, ReplicaState.STARTING):
            yield from _refuse_after_failed_load(cluster, replica, decision)


def _refuse_after_failed_load(cluster: ClusterState, failed: ReplicaView, decision: FailReplica) -> Iterator[Decision]:
    """Refuses the waiting requests after a failed load. They keep waiting if another replica is ready, if the node was lost, or
    if the settings were on trial."""
    others = [replica for replica in cluster.live(failed.version) if replica.state is ReplicaState.READY]
    if cluster.deployment(failed).on_trial:
        return
    if not others and cluster.waiting(failed.version) and cluster.node_is_ready(failed.node):
        yield RefuseWaiting(failed.version, decision.code, load_failure(cluster, failed.version, decision.reason))


def load_failure(cluster: ClusterState, version: str, reason: str) -> str:
    view = cluster.versions.get(version)
    return f"model '{view.shown if view else version[:12]}' could not be loaded: {reason}"


def _demand(cluster: ClusterState) -> Iterator[Decision]:
    for demand in cluster.demand.values():
        version = cluster.versions.get(demand.version)
        if version is None or not version.is_named:
            if demand.waiting:
                yield from _refuse_unnamed(cluster, demand.version)
            elif not cluster.live(demand.version):
                yield ForgetDemand(demand.version)
        elif demand.waiting:
            yield from _load_or_refuse(cluster, demand.version)
        elif not _is_wanted(cluster, demand.version) and not cluster.live(demand.version):
            yield ForgetDemand(demand.version)


def _refuse_unnamed(cluster: ClusterState, version: str) -> Iterator[Decision]:
    """Refuses requests for a version that no tag names. If the tag moved, they are still served while the version's replicas
    run."""
    view = cluster.versions.get(version)
    if view is None or not view.kept:
        yield RefuseWaiting(version, ModelNotFound.code, f"model '{view.shown if view else version[:12]}' not found")
    elif not _serves_on(cluster, version):
        message = f"version {view.shown} was replaced before the request was served; send it again"
        yield RefuseWaiting(version, Unavailable.code, message)


def _serves_on(cluster: ClusterState, version: str) -> bool:
    serving = (ReplicaState.STARTING, ReplicaState.READY)
    return any(replica.state in serving for replica in cluster.live(version)) and _is_wanted(cluster, version)


def _is_wanted(cluster: ClusterState, version: str) -> bool:
    return any(deployment.replicas_wanted for deployment in cluster.deployments if deployment.version == version)


def _load_or_refuse(cluster: ClusterState, version: str) -> Iterator[Decision]:
    """Loads a version that requests wait for, or refuses them if it cannot be served. Does nothing if a replica is loading or
    serving. If settings on trial do not work, the requests wait until the previous ones are put back."""
    if any(
        replica.state is not ReplicaState.DRAINING and replica.state is not ReplicaState.PENDING
        for replica in cluster.live(version)
    ):
        return
    on_trial = any(deployment.on_trial for deployment in cluster.deployments if deployment.version == version)
    if not on_trial and (reason := never_placed(cluster, version)):
        yield RefuseWaiting(version, ModelLoadFailed.code, load_failure(cluster, version, reason))
    elif reason := unservable(cluster, version):
        yield RefuseWaiting(version, Unavailable.code, load_failure(cluster, version, reason))
    elif not on_trial and (failed := permanent_failure(cluster, version)):
        yield RefuseWaiting(version, failed.error_code, load_failure(cluster, version, failed.reason))
    elif not _is_wanted(cluster, version):
        yield WantVersion(version)


def _deployments(cluster: ClusterState) -> Iterator[Decision]:
    for deployment in cluster.deployments:
        live = [replica for replica in cluster.live(deployment.version) if replica.deployment == deployment.id]
        if deployment.replicas_wanted and (scale_down := _scale_down(cluster, deployment, live)):
            yield scale_down
        else:
            yield from rollout(cluster, deployment, live)
        yield from surplus(cluster, deployment, live)


def _scale_down(cluster: ClusterState, deployment: DeploymentView, live: list[ReplicaView]) -> UnwantDeployment | None:
    version, policy = cluster.versions[deployment.version], cluster.policy
    if not version.is_named:
        if version.kept and cluster.waiting(version.digest) and _serves_on(cluster, version.digest):
            return None
        return UnwantDeployment(deployment.id, deployment.version, unnamed(version), unused=False)
    if deployment.origin is Origin.PINNED or cluster.waiting(deployment.version):
        return None
    if all(replica.state is ReplicaState.PENDING for replica in live):
        return UnwantDeployment(deployment.id, deployment.version, "no request waits for it now", unused=True)
    demand = cluster.demand.get(deployment.version)
    keep_alive_ms = policy.keep_alive_s * 1000 if demand is None or demand.keep_alive_ms is None else demand.keep_alive_ms
    if keep_alive_ms < 0 or not all(cluster.is_idle(replica) for replica in live):
        return None
    if min(cluster.unused_ms(replica) for replica in live) <= keep_alive_ms:
        return None
    return UnwantDeployment(deployment.id, deployment.version, "unused for longer than its keep_alive", unused=True)


def _contexts(cluster: ClusterState) -> Iterator[Decision]:
    """Gives a deployment the longer context that requests ask for, when its replicas are idle or pending and the largest node
    has enough memory in total."""
    for deployment in cluster.deployments:
        if deployment.widened is None or not deployment.replicas_wanted:
            continue
        largest = max((node.memory_total + node.device_memory for node in cluster.nodes.values()), default=0)
        fits = deployment.widened_bytes + cluster.policy.memory_reserve_bytes <= largest
        if fits and all(_may_restart(cluster, replica) for replica in cluster.live(deployment.version)):
            yield WidenContext(deployment.id, deployment.widened)


def _may_restart(cluster: ClusterState, replica: ReplicaView) -> bool:
    return replica.state is ReplicaState.PENDING or (replica.state is ReplicaState.READY and cluster.is_idle(replica))


def _orphans(cluster: ClusterState) -> Iterator[Decision]:
    """Stops processes whose replica is over, unknown, or on another node, and processes that have been draining for too
    long."""
    allowed = {(replica.id, replica.node) for replica in cluster.replicas if _may_run(cluster, replica)}
    for process in cluster.processes:
        if not process.runs or (process.replica, process.node) in allowed:
            continue
        stop = cluster.job(JobKind.STOP, process.replica)
        if stop is None or stop.node != process.node or stop.state.is_over:
            yield EndProcess(process.replica, process.node)


def _may_run(cluster: ClusterState, replica: ReplicaView) -> bool:
    if replica.state is ReplicaState.DRAINING:
        return cluster.age_s(replica.state_changed_at) < DRAIN_PATIENCE_S
    return replica.state in (ReplicaState.STARTING, ReplicaState.READY)


def _jobs(cluster: ClusterState) -> Iterator[Decision]:
    for job in cluster.jobs:
        if job.state.is_over:
            continue
        if reason := _reason_to_give_up(cluster, job):
            yield FailJob(job.id, job.node, Unavailable.code, reason)
        elif _due(cluster, job):
            yield SendJob(job.id)


def _reason_to_give_up(cluster: ClusterState, job: JobView) -> str | None:
    """Why the job is given up; None if it is not. A Delete job for a lost node stays open until the node is back."""
    if not cluster.node_is_ready(job.node):
        return None if job.kind is JobKind.DELETE else f"node {job.node} is lost"
    runs = {replica.id for replica in cluster.replicas if replica.state in (ReplicaState.STARTING, ReplicaState.READY)}
    return "its replica is no longer wanted" if job.kind is JobKind.START and job.replica not in runs else None


def _due(cluster: ClusterState, job: JobView) -> bool:
    node = cluster.nodes.get(job.node)
    if node is None or node.state is not NodeState.READY:
        return False
    if job.state is JobState.QUEUED:
        return job.kind is not JobKind.DELETE or not _serves_untagged(cluster, job)
    if job.sent_at is None or job.id in node.jobs or not node.reporting:
        return False
    last_known = max(job.sent_at, cluster.job_seen.get(job.id, job.sent_at))
    if cluster.restarted_since(job.node, last_known):
        return True
    quiet_since = max(last_known, cluster.watching_since)
    patience_s: float = cluster.policy.job_resend_after_s * 2 ** min(job.sends - 1, RESEND_DOUBLINGS)
    return cluster.age_s(quiet_since) > patience_s


def _serves_untagged(cluster: ClusterState, job: JobView) -> bool:
    """Whether live replicas on the job's node still use the version that the job deletes. A version that a tag names keeps its
    files, so its Delete job need not wait."""
    version = cluster.versions.get(job.version or "")
    if version is None or version.is_named:
        return False
    return any(replica.node == job.node for replica in cluster.live(version.digest))


def _garbage(cluster: ClusterState) -> Iterator[Decision]:
    for version in cluster.versions.values():
        needed = version.is_named or version.kept or cluster.live(version.digest) or cluster.waiting(version.digest)
        if not needed:
            yield ForgetVersion(version.digest)
