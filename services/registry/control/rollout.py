"""Gives a deployment as many replicas as it wants, with its current settings. Pure.

Pinned deployments get new settings one replica at a time: a new replica starts beside the old ones, and when it is ready an
old one is drained. If memory does not suffice for both, an old one is drained first. If the new settings fail before any
replica was ready with them, the previous settings are put back and the old replicas keep serving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.registry.control.assign import fits_as_replacement, never_placed
from services.registry.control.backoff import is_permanent
from services.registry.control.cluster_state import ClusterState, DeploymentView, ReplicaView, VersionView
from services.registry.control.decisions import (
    CreateReplica,
    Decision,
    DrainReplica,
    KeepSettings,
    PutBackSettings,
    StopReplica,
)
from services.registry.states import Origin, ReplicaState

#: After a permanent failure, requests fail with the same error for this long; after that the next request triggers a new
#: attempt.
PERMANENT_ANSWER_S = 10.0

#: How long a new replica waits for memory before an old one is drained to make room.
ROOM_PATIENCE_S = 5.0

_SERVES_BEST_FIRST = (ReplicaState.READY, ReplicaState.STARTING, ReplicaState.FETCHING, ReplicaState.PENDING)


def rollout(cluster: ClusterState, deployment: DeploymentView, live: Sequence[ReplicaView]) -> Iterator[Decision]:
    """The next step towards the wanted replicas."""
    serving = _serving(live)
    if reason := _failed_trial(cluster, deployment):
        yield PutBackSettings(deployment.id, deployment.engine, reason)
        return
    if deployment.on_trial and any(_is_ready(replica) and replica.engine == deployment.engine for replica in serving):
        yield KeepSettings(deployment.id, deployment.engine)
    if len(serving) < deployment.replicas_wanted:
        yield from _next_attempt(cluster, deployment)
    elif len(serving) == len(live):
        yield from _replacement(cluster, deployment, serving)


def surplus(cluster: ClusterState, deployment: DeploymentView, live: Sequence[ReplicaView]) -> Iterator[Decision]:
    """Ends replicas in excess of those wanted, outdated ones first. During a rollout of a pinned deployment one extra stays
    until all replicas with the current settings are ready."""
    serving = _serving(live)
    current, outdated = _by_settings(deployment, serving)
    beside = _is_pinned(deployment) and bool(outdated) and not all(_is_ready(replica) for replica in current)
    for replica in sorted(serving, key=lambda one: _keep_order(deployment, one))[deployment.replicas_wanted + int(beside) :]:
        reason = "its settings have changed" if replica in outdated else "its deployment wants fewer replicas"
        yield _end(replica, cluster.versions[deployment.version], deployment.reason or reason)


def permanent_failure(cluster: ClusterState, version: str) -> ReplicaView | None:
    for replica in cluster.replicas:
        permanent = replica.state is ReplicaState.FAILED and is_permanent(replica.error_code)
        same = (
            replica.version == version
            and replica.runs_as(cluster.deployment(replica))
            and not _no_longer_counts(cluster, replica)
        )
        if permanent and same and cluster.age_s(replica.state_changed_at) < PERMANENT_ANSWER_S:
            return replica
    return None


def unnamed(version: VersionView) -> str:
    return "its name points to another version now" if version.kept else "the model was deleted"


def _failed_trial(cluster: ClusterState, deployment: DeploymentView) -> str | None:
    """Why the settings on trial do not work; None if they may, or if none are on trial."""
    if not deployment.on_trial:
        return None
    if reason := deployment.fault or never_placed(cluster, deployment.version):
        return reason
    last = _last_ended(cluster, deployment)
    failed = last is not None and last.state is ReplicaState.FAILED and last.engine == deployment.engine
    return last.reason if last and failed and not _no_longer_counts(cluster, last) else None


def _next_attempt(cluster: ClusterState, deployment: DeploymentView, *, beside: bool = False) -> Iterator[Decision]:
    if deployment.origin is Origin.ON_DEMAND and not cluster.waiting(deployment.version):
        return
    last = _last_ended(cluster, deployment)
    if (
        last is None
        or last.state is not ReplicaState.FAILED
        or not last.runs_as(deployment)
        or _no_longer_counts(cluster, last)
    ):
        yield CreateReplica(deployment.id, attempts=1, beside=beside)
    elif last.retry_at is None:
        if cluster.waiting(deployment.version) and permanent_failure(cluster, deployment.version) is None:
            yield CreateReplica(deployment.id, attempts=last.attempts + 1, beside=beside)
    elif last.retry_at <= cluster.now:
        yield CreateReplica(deployment.id, attempts=last.attempts + 1, beside=beside)


def _last_ended(cluster: ClusterState, deployment: DeploymentView) -> ReplicaView | None:
    return next(
        (replica for replica in cluster.replicas if replica.deployment == deployment.id and replica.state.is_over), None
    )


def _no_longer_counts(cluster: ClusterState, failed: ReplicaView) -> bool:
    """Whether the failure no longer counts: its node's agent was restarted since, or an admin deployed the model again."""
    deployed_at = cluster.deployment(failed).deployed_at
    deployed = deployed_at is not None and deployed_at > failed.state_changed_at
    return deployed or cluster.restarted_since(failed.node, failed.state_changed_at)


def _replacement(cluster: ClusterState, deployment: DeploymentView, serving: Sequence[ReplicaView]) -> Iterator[Decision]:
    """The next step of replacing outdated replicas, one at a time: only when all replicas with the current settings are ready,
    or when one of them waits for memory."""
    current, outdated = _by_settings(deployment, serving)
    if deployment.fault or not outdated:
        return
    all_ready = all(_is_ready(replica) for replica in current)
    first = min(outdated, key=lambda replica: (_is_ready(replica), replica.id))
    if not _is_pinned(deployment) or not _is_ready(first):
        if all_ready:
            yield _end(first, cluster.versions[deployment.version], "its settings have changed")
    elif all_ready and len(serving) == deployment.replicas_wanted:
        yield from _next_attempt(cluster, deployment, beside=True)
    elif any(_waits_for_room(cluster, replica) for replica in current):
        yield from _make_room(cluster, deployment, outdated)


def _make_room(cluster: ClusterState, deployment: DeploymentView, outdated: Sequence[ReplicaView]) -> Iterator[Decision]:
    for replica in outdated:
        if fits_as_replacement(cluster, replica):
            yield _end(
                replica, cluster.versions[deployment.version], "its settings have changed, and there is no memory for both"
            )
            return


def _waits_for_room(cluster: ClusterState, replica: ReplicaView) -> bool:
    return replica.state is ReplicaState.PENDING and cluster.age_s(replica.state_changed_at) > ROOM_PATIENCE_S


def _serving(live: Sequence[ReplicaView]) -> list[ReplicaView]:
    return [replica for replica in live if replica.state is not ReplicaState.DRAINING]


def _by_settings(deployment: DeploymentView, serving: Sequence[ReplicaView]) -> tuple[list[ReplicaView], list[ReplicaView]]:
    """The replicas with the current settings, and the outdated ones."""
    outdated = [replica for replica in serving if not replica.runs_as(deployment)]
    return [replica for replica in serving if replica not in outdated], outdated


def _is_pinned(deployment: DeploymentView) -> bool:
    return deployment.origin is Origin.PINNED


def _is_ready(replica: ReplicaView) -> bool:
    return replica.state is ReplicaState.READY


def _keep_order(deployment: DeploymentView, replica: ReplicaView) -> tuple[bool, int, str]:
    """Sort key: replicas to keep come first. Current settings before outdated ones, then by progress, then by age."""
    outdated = _is_pinned(deployment) and not replica.runs_as(deployment)
    return outdated, _SERVES_BEST_FIRST.index(replica.state), replica.id


def _end(replica: ReplicaView, version: VersionView, reason: str) -> Decision:
    reason = reason if version.is_named else unnamed(version)
    if replica.state in (ReplicaState.PENDING, ReplicaState.FETCHING) or replica.node is None:
        return StopReplica(replica.id, replica.state, reason)
    return DrainReplica(replica.id, replica.state, replica.node, reason)
