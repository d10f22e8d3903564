"""Decides about one live replica from the reports of its worker and node: at most one decision. Pure.

A worker's own report takes precedence over its node's report of the process, because it arrives earlier and knows the cause.
A missing process counts only while the node reports.
"""

from __future__ import annotations

from datetime import datetime
from signal import SIGKILL

from services.protocol.errors import ModelLoadFailed, ModelRefused, WorkerLost
from services.protocol.reports import STOPPED_EXIT_CODES, WorkerReport, WorkerState
from services.registry.control.cluster_state import ClusterState, JobView, ProcessView, ReplicaView
from services.registry.control.decisions import (
    DrainReplica,
    FailReplica,
    MeasureReplica,
    ProveReplica,
    ReadyReplica,
    ReplicaDecision,
    StartReplica,
    StopReplica,
)
from services.registry.database.stored_text import stored_text
from services.registry.states import JobKind, JobState, ReplicaState

#: A worker that has not reported for this long is stuck. Workers report every second, and a report expires after three.
SILENT_AFTER_S = 20.0

#: A worker that has not reported for this long is gone if its node does not report its process either. The two reports are at
#: most this far apart.
GONE_AFTER_S = 3.0

_LOADED = frozenset({WorkerState.READY, WorkerState.DRAINING})

_EXIT_MEANINGS = {3: ": the model could not be loaded", 4: ": llama.cpp failed"}

#: The recorded memory is updated when the worker uses more than this factor of it.
MIN_MEMORY_GROWTH = 1.05


def replica_decision(cluster: ClusterState, replica: ReplicaView) -> ReplicaDecision | None:
    if replica.node is not None and not cluster.node_is_ready(replica.node):
        return _stop(replica, f"node {replica.node} was lost")
    if _ended_unseen(cluster, replica):
        return _stop(replica, f"node {replica.node} was restarted")
    match replica.state:
        case ReplicaState.FETCHING:
            return _fetching(cluster, replica)
        case ReplicaState.STARTING:
            return _starting(cluster, replica)
        case ReplicaState.READY:
            return _ready(cluster, replica)
        case ReplicaState.DRAINING:
            return _draining(cluster, replica)
        case _:
            return None


def exit_reason(process: ProcessView) -> str:
    """Why a process ended, for an operator: the node's reason if it has one, otherwise what the exit code means."""
    code = process.exit_code or 0
    if process.reason:
        return process.reason
    if code < 0:
        guess = ", probably because memory ran out" if -code == SIGKILL else ""
        return f"killed by signal {-code}{guess}"
    meaning = _EXIT_MEANINGS.get(code, "")
    return f"exited with code {code}{meaning}"


def _ended_unseen(cluster: ClusterState, replica: ReplicaView) -> bool:
    """Whether its process ended while no agent watched: a new agent has started on the node and reports no running process of
    it. A new agent adopts processes that still run."""
    process, start = cluster.process(replica), cluster.job(JobKind.START, replica.id)
    if (process and process.runs) or not cluster.restarted_since(replica.node, replica.state_changed_at):
        return False
    if replica.state is ReplicaState.STARTING:  # the new agent may be about to start it
        return start is not None and start.finished_at is not None and cluster.restarted_since(replica.node, start.finished_at)
    return replica.state is ReplicaState.READY and _reports(cluster, replica)


def _stop(replica: ReplicaView, reason: str) -> StopReplica:
    return StopReplica(replica.id, replica.state, reason)


def _fail(replica: ReplicaView, code: str, reason: str) -> FailReplica:
    return FailReplica(replica.id, replica.state, code, stored_text(reason))


def _fetching(cluster: ClusterState, replica: ReplicaView) -> ReplicaDecision | None:
    version, node, deployment = cluster.versions[replica.version], cluster.nodes[str(replica.node)], cluster.deployment(replica)
    if fault := version.fault or deployment.fault:
        return _fail(replica, ModelRefused.code, fault)
    if version.model_blob in node.blobs:
        return StartReplica(
            *(
                replica.id,
                replica.state,
                version.digest,
                node.name,
                version.model_blob,
                deployment.memory_bytes,
                deployment.engine,
            )
        )
    pull = cluster.job(JobKind.PULL, replica.id)
    if failure := _failed_job(replica, pull):
        return failure
    if pull and pull.finished_at and cluster.age_s(pull.finished_at) > SILENT_AFTER_S:
        return _fail(replica, ModelLoadFailed.code, f"{version.source} no longer has this version")
    return None


def _starting(cluster: ClusterState, replica: ReplicaView) -> ReplicaDecision | None:
    worker, process, start = cluster.workers.get(replica.id), cluster.process(replica), cluster.job(JobKind.START, replica.id)
    if worker and worker.state is WorkerState.READY:
        return _loaded(replica, worker)
    if worker and worker.state is WorkerState.FAILED:
        return _fail(replica, worker.error_code or ModelLoadFailed.code, worker.error or "its worker gave no reason")
    if (departed := cluster.departed.get(replica.id)) and departed.state in _LOADED:
        return _loaded(replica, departed)  # it was ready and ended between two turns: not a failure to load
    if failure := _failed_job(replica, start):
        return failure
    if process and not process.runs:
        return _ended_early(replica, process)
    if cluster.age_s(replica.state_changed_at) > cluster.policy.start_timeout_s:
        return _fail(replica, ModelLoadFailed.code, f"it was not ready after {cluster.policy.start_timeout_s:.0f} s")
    started = start is not None and start.state is JobState.SUCCEEDED and _was(cluster, start.finished_at, SILENT_AFTER_S)
    if started and not process and not worker and _reports(cluster, replica) and _silent(cluster, replica, SILENT_AFTER_S):
        return _fail(replica, ModelLoadFailed.code, "its process ended while no agent watched it")
    return None


def _loaded(replica: ReplicaView, worker: WorkerReport) -> ReadyReplica:
    device = worker.device_memory_bytes
    return ReadyReplica(replica.id, replica.state, _memory_bytes(worker), device, worker.slots, worker.context_tokens)


def _ended_early(replica: ReplicaView, process: ProcessView) -> ReplicaDecision:
    if process.exit_code in STOPPED_EXIT_CODES and not process.error_code:
        return _stop(replica, "its process was asked to stop")
    return _fail(replica, process.error_code or ModelLoadFailed.code, exit_reason(process))


def _ready(cluster: ClusterState, replica: ReplicaView) -> ReplicaDecision | None:
    worker, process = cluster.workers.get(replica.id), cluster.process(replica)
    if worker:
        return _working(replica, worker)
    if not _reports(cluster, replica):
        return None
    if process and process.exit_code == 0:
        return DrainReplica(replica.id, replica.state, str(replica.node), "its worker ended on its own", stop=False)
    if process and not process.runs and process.exit_code in STOPPED_EXIT_CODES and not process.error_code:
        return _stop(replica, "its process was asked to stop")
    if process and not process.runs:
        return _fail(replica, WorkerLost.code, exit_reason(process))
    if process is None and _silent(cluster, replica, GONE_AFTER_S):
        return _stop(replica, "its process ended while no agent watched it")
    if _silent(cluster, replica, SILENT_AFTER_S):
        return _fail(replica, WorkerLost.code, "its worker stopped reporting")
    return None


def _working(replica: ReplicaView, worker: WorkerReport) -> ReplicaDecision | None:
    if worker.state is WorkerState.DRAINING:
        return DrainReplica(replica.id, replica.state, str(replica.node), "its worker drains on its own", stop=False)
    if worker.state is WorkerState.FAILED:
        return _fail(replica, worker.error_code or WorkerLost.code, worker.error or "its worker gave no reason")
    if worker.answered and replica.attempts > 1:
        return ProveReplica(replica.id, replica.state)
    if _memory_bytes(worker) > max(replica.memory_measured, 1) * MIN_MEMORY_GROWTH:
        return MeasureReplica(replica.id, replica.state, _memory_bytes(worker))
    return None


def _memory_bytes(worker: WorkerReport) -> int:
    return worker.memory_bytes + worker.device_memory_bytes


def _draining(cluster: ClusterState, replica: ReplicaView) -> ReplicaDecision | None:
    process = cluster.process(replica)
    if replica.id in cluster.workers or (process and process.runs) or not _reports(cluster, replica):
        return None
    return StopReplica(replica.id, replica.state, replica.reason)


def _failed_job(replica: ReplicaView, job: JobView | None) -> FailReplica | None:
    if job and job.state is JobState.FAILED:
        return _fail(replica, job.error_code, job.error)
    return None


def _reports(cluster: ClusterState, replica: ReplicaView) -> bool:
    return cluster.nodes[str(replica.node)].reporting


def _was(cluster: ClusterState, moment: datetime | None, ago_s: float) -> bool:
    return moment is not None and cluster.age_s(moment) > ago_s


def _silent(cluster: ClusterState, replica: ReplicaView, for_s: float) -> bool:
    last_report_at = cluster.worker_seen.get(replica.id, replica.state_changed_at)
    return cluster.age_s(max(last_report_at, replica.state_changed_at, cluster.watching_since)) > for_s
