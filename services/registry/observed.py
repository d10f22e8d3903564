"""What reports say about one live replica. Pure: the world in, at most one decision out.

A worker's own report counts before what its node says of the process: it comes earlier and knows why. Nothing is concluded
from a node that does not report right now.
"""

from __future__ import annotations

import signal

from services.protocol.errors import ModelLoadFailed, WorkerLost
from services.protocol.reports import WorkerReport, WorkerState
from services.registry.decisions import (
    DrainReplica,
    FailReplica,
    MeasureReplica,
    ReadyReplica,
    ReplicaDecision,
    StartReplica,
    StopReplica,
)
from services.registry.states import JobKind, JobState, ReplicaState
from services.registry.world import JobView, ProcessView, ReplicaView, World

#: Reports come every second and hold for three; a replica that runs and says nothing for so long is stuck.
SILENCE_S = 20.0

#: One whose process its node does not know either is gone; the two kinds of reports are this far apart at most.
GONE_S = 3.0

#: Memory is measured anew when it has grown by more than this.
NOTICEABLE = 1.05


def observed_replica(world: World, replica: ReplicaView) -> ReplicaDecision | None:
    if replica.node is not None and not world.node_is_ready(replica.node):
        return _fail(replica, WorkerLost.code, f"node {replica.node} was lost")
    match replica.state:
        case ReplicaState.FETCHING:
            return _fetching(world, replica)
        case ReplicaState.STARTING:
            return _starting(world, replica)
        case ReplicaState.READY:
            return _ready(world, replica)
        case ReplicaState.DRAINING:
            return _draining(world, replica)
        case _:
            return None


def exit_reason(process: ProcessView | None) -> str:
    """What became of a process, in words: as its node says, or exit code, signal, last line."""
    if process is None or process.exit_code is None:
        return "its process is gone"
    if process.reason:
        return process.reason
    line = f": {process.last_line}" if process.last_line else ""
    if process.exit_code < 0:
        return f"killed by {_signal_name(-process.exit_code)}{line}"
    return f"exit code {process.exit_code}{line}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _fail(replica: ReplicaView, code: str, reason: str) -> FailReplica:
    return FailReplica(replica.id, replica.state, code, reason)


def _fetching(world: World, replica: ReplicaView) -> ReplicaDecision | None:
    version, node = world.versions[replica.version], world.nodes[str(replica.node)]
    if version.model_blob in node.blobs:
        deployment = world.deployment(replica)
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
    pull = world.job(JobKind.PULL, replica.id)
    if failure := _failed_job(replica, pull):
        return failure
    if pull and pull.finished_at and world.age_s(pull.finished_at) > SILENCE_S:
        return _fail(replica, ModelLoadFailed.code, f"{version.source} no longer holds this version")
    return None


def _starting(world: World, replica: ReplicaView) -> ReplicaDecision | None:
    worker, process, start = world.workers.get(replica.id), world.process(replica), world.job(JobKind.START, replica.id)
    if worker and worker.state is WorkerState.READY:
        device = worker.device_memory_bytes
        return ReadyReplica(replica.id, replica.state, _memory_bytes(worker), device, worker.slots, worker.context_tokens)
    if worker and worker.state is WorkerState.FAILED:
        return _fail(replica, worker.error_code or ModelLoadFailed.code, worker.error or "its worker says no more")
    if failure := _failed_job(replica, start):
        return failure
    if process and not process.runs:
        return _fail(replica, process.error_code or ModelLoadFailed.code, exit_reason(process))
    if world.age_s(replica.state_changed_at) > world.policy.start_timeout_s:
        return _fail(replica, ModelLoadFailed.code, f"it did not serve within {world.policy.start_timeout_s:.0f} s")
    started = start is not None and start.state is JobState.SUCCEEDED
    if started and not process and not worker and _reports(world, replica) and _silent(world, replica, SILENCE_S):
        return _fail(replica, ModelLoadFailed.code, exit_reason(None))
    return None


def _ready(world: World, replica: ReplicaView) -> ReplicaDecision | None:
    worker, process = world.workers.get(replica.id), world.process(replica)
    if worker:
        return _working(replica, worker)
    if not _reports(world, replica):
        return None
    if process and process.exit_code == 0:
        return DrainReplica(replica.id, replica.state, str(replica.node), "its worker ended on its own", stop=False)
    if process and not process.runs:
        return _fail(replica, WorkerLost.code, exit_reason(process))
    if _silent(world, replica, SILENCE_S if process else GONE_S):
        return _fail(replica, WorkerLost.code, "its worker went silent" if process else exit_reason(None))
    return None


def _working(replica: ReplicaView, worker: WorkerReport) -> ReplicaDecision | None:
    if worker.state is WorkerState.DRAINING:
        return DrainReplica(replica.id, replica.state, str(replica.node), "its worker drains on its own", stop=False)
    if worker.state is WorkerState.FAILED:
        return _fail(replica, worker.error_code or WorkerLost.code, worker.error or "its worker says no more")
    if _memory_bytes(worker) > max(replica.memory_measured, 1) * NOTICEABLE:
        return MeasureReplica(replica.id, replica.state, _memory_bytes(worker))
    return None


def _memory_bytes(worker: WorkerReport) -> int:
    return worker.memory_bytes + worker.device_memory_bytes


def _draining(world: World, replica: ReplicaView) -> ReplicaDecision | None:
    process = world.process(replica)
    if replica.id in world.workers or (process and process.runs) or not _reports(world, replica):
        return None
    return StopReplica(replica.id, replica.state, replica.reason)


def _failed_job(replica: ReplicaView, job: JobView | None) -> FailReplica | None:
    if job and job.state is JobState.FAILED:
        return _fail(replica, job.error_code, job.error)
    return None


def _reports(world: World, replica: ReplicaView) -> bool:
    return world.nodes[str(replica.node)].reporting


def _silent(world: World, replica: ReplicaView, for_s: float) -> bool:
    heard = world.worker_seen.get(replica.id, replica.state_changed_at)
    return world.age_s(max(heard, replica.state_changed_at, world.watching_since)) > for_s
