from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from services.protocol.engine import EngineSettings
from services.protocol.reports import WorkerState
from services.registry.control.cluster_state import ClusterState, ReplicaView
from services.registry.control.decisions import (
    CreateReplica,
    Decision,
    DrainReplica,
    EndProcess,
    ExplainReplica,
    FailJob,
    FailReplica,
    FetchModel,
    ForgetDemand,
    ForgetVersion,
    KeepSettings,
    LoseNode,
    MeasureReplica,
    ProveReplica,
    PutBackSettings,
    ReadyReplica,
    RefuseWaiting,
    SendJob,
    StartReplica,
    StopReplica,
    UnwantDeployment,
    WantVersion,
)
from services.registry.control.reconcile import reconcile
from services.registry.states import JobKind, JobState, NodeState, Origin, ReplicaState
from tests.registry.control.cluster_states import (
    BLOB,
    GIB,
    NOW,
    VERSION,
    ago,
    cluster,
    demand,
    deployment,
    job,
    node,
    process,
    replica,
    serving,
    version,
    with_demand,
    worker,
)

R = ReplicaState
WAITS = with_demand(demand(waiting=1))
START_SENT = job(JobKind.START, JobState.SENT)
PROCESS_STOPPED = "its process was asked to stop"
OUT_OF_MEMORY = "ran out of memory: limit 2.0 GiB"
ENGINE = EngineSettings()
NO_ROOM = "n1 has 0.5 GiB of memory free, 1.0 GiB are needed"
OTHER = EngineSettings(slots=2)


def starting(**changes: Any) -> ClusterState:
    return cluster(
        **{
            "deployments": (deployment(),),
            "replicas": (replica(R.STARTING),),
            "jobs": (START_SENT,),
            "demand": WAITS,
            **changes,
        }
    )


def draining(**changes: Any) -> ClusterState:
    facts = {
        "deployments": (deployment(replicas_wanted=0),),
        "replicas": (replica(R.DRAINING, reason="why"),),
        "demand": with_demand(demand()),
    }
    return cluster(**{**facts, **changes})


def pending(**changes: Any) -> ClusterState:
    return cluster(**{"deployments": (deployment(),), "replicas": (replica(R.PENDING),), "demand": WAITS, **changes})


def fetching(**changes: Any) -> ClusterState:
    facts = {
        "versions": {VERSION: version(source="pypi:m")},
        "nodes": {"n1": node(blobs=frozenset())},
        "deployments": (deployment(),),
        "replicas": (replica(R.FETCHING),),
        "jobs": (job(JobKind.PULL, JobState.SENT),),
        "demand": WAITS,
    }
    return cluster(**{**facts, **changes})


def two(*replicas: ReplicaView) -> ClusterState:
    """A pinned deployment of two whose settings were OTHER before."""
    facts = {
        "deployments": (deployment(origin=Origin.PINNED, replicas_wanted=2, engine=ENGINE),),
        "replicas": replicas,
        "workers": {one.id: worker(replica=one.id) for one in replicas if one.state is R.READY},
        "processes": tuple(process(replica=one.id) for one in replicas if one.node),
        "jobs": tuple(job(JobKind.START, JobState.SENT, replica=one.id) for one in replicas if one.state is R.STARTING),
        # The third replica waits for the memory that the draining one still uses.
        "nodes": {"n1": node(memory_total=GIB * 2)},
    }
    return cluster(**facts)


def rolling(
    *new: ReplicaView,
    old: ReplicaState = R.READY,
    needs: int = GIB,
    demand: dict[str, Any] | None = None,
    nodes: Any = None,
    **changes: Any,
) -> ClusterState:
    """A pinned deployment of one whose settings were OTHER before."""
    replicas = (*new, replica(old, engine=OTHER))
    live = [one for one in replicas if one.node and not one.state.is_over]
    return cluster(
        versions={VERSION: version(memory_bytes=needs)},
        deployments=(deployment(origin=Origin.PINNED, engine=ENGINE, memory_bytes=needs, **changes),),
        replicas=replicas,
        workers={one.id: worker(replica=one.id) for one in live if one.state is R.READY},
        processes=tuple(process(replica=one.id) for one in live),
        demand=demand or {},
        nodes=nodes or {"n1": node()},
    )


def failed(code: str = "model_load_failed", **changes: Any) -> ClusterState:
    over = replica(R.FAILED, error_code=code, reason="no luck", attempts=3, **changes)
    return cluster(deployments=(deployment(),), replicas=(over,), demand=WAITS)


def restarted(seen: ClusterState) -> ClusterState:
    """The node's agent was restarted."""
    return dataclasses.replace(seen, agent_since={"n1": ago(1)})


@pytest.mark.parametrize(
    "satisfied",
    [
        cluster(),
        serving(),
        serving(demand={}),
        serving(demand=with_demand(demand(waiting=5, unused_s=1000))),
        serving(demand=with_demand(demand(unused_s=100_000, keep_alive_s=-1))),
        serving(deployments=(deployment(origin=Origin.PINNED),), demand=with_demand(demand(unused_s=100_000))),
        serving(workers={"r1": worker(running=1)}, demand=with_demand(demand(unused_s=100_000))),
        serving(workers={}, worker_seen={"r1": ago(5)}),
        serving(deployments=(deployment(engine=OTHER),), replicas=(replica(R.READY, engine=OTHER),)),
        serving(deployments=(deployment(engine=OTHER),), replicas=(replica(R.READY, engine=None),)),
        two(replica(R.READY, engine=OTHER), replica(R.STARTING, id="r2", engine=ENGINE)),
        two(
            replica(R.READY, engine=OTHER),
            replica(R.DRAINING, id="r2", engine=OTHER),
            replica(R.PENDING, id="r3", reason="n1 has 0.0 GiB of memory free, 1.0 GiB are needed"),
        ),
        starting(workers={"r1": worker(WorkerState.LOADING)}, processes=(process(),)),
        starting(),
        fetching(),
        draining(processes=(process(),)),
        draining(workers={"r1": worker(WorkerState.DRAINING)}),
        failed(retry_at=ago(-5)),
    ],
    ids=[
        "nothing",
        "serving",
        "serving, and Redis forgot",
        "serving a queue",
        "kept forever",
        "pinned",
        "busy for a long time",
        "a report is late",
        "with its deployment's settings",
        "with unknown settings",
        "replacing one by one: the new one does not serve yet",
        "replacing one by one: the old one still drains",
        "loading",
        "not started yet",
        "fetching",
        "draining",
        "draining, reported only by its worker",
        "backing off",
    ],
)
def test_a_satisfied_state_needs_no_decisions(satisfied: ClusterState) -> None:
    assert reconcile(satisfied) == ()


LOAD_FAILED = "model 'm:latest' could not be loaded: "

TABLE: list[tuple[str, ClusterState, Sequence[Decision]]] = [
    ("requests wait: wanted", cluster(demand=WAITS), [WantVersion(VERSION)]),
    (
        "requests wait and it was unloaded before: wanted again",
        cluster(demand=WAITS, deployments=(deployment(replicas_wanted=0),), replicas=(replica(R.STOPPED),)),
        [WantVersion(VERSION)],
    ),
    ("wanted: a replica", cluster(demand=WAITS, deployments=(deployment(),)), [CreateReplica(1, 1)]),
    (
        "pinned: replicas without any request",
        cluster(
            deployments=(deployment(origin=Origin.PINNED, replicas_wanted=2),),
            replicas=(replica(R.READY),),
            workers={"r1": worker()},
        ),
        [CreateReplica(1, 1)],
    ),
    (
        "pending: started on the node with the file",
        pending(),
        [StartReplica("r1", R.PENDING, VERSION, "n1", BLOB, GIB, ENGINE)],
    ),
    (
        "pending: fetched by a node without the file",
        pending(versions={VERSION: version(source="pypi:m")}, nodes={"n1": node(blobs=frozenset())}),
        [FetchModel("r1", R.PENDING, VERSION, "n1", GIB, "pypi:m", "registry.ollama.ai/library/m:latest")],
    ),
    (
        "pending: no request waits any more",
        pending(demand=with_demand(demand())),
        [UnwantDeployment(1, VERSION, "no request waits for it now", unused=True)],
    ),
    (
        "pending: not wanted",
        pending(deployments=(deployment(replicas_wanted=0, reason="why"),), demand=with_demand(demand())),
        [StopReplica("r1", R.PENDING, "why")],
    ),
    (
        "pending: short of memory, explained once",
        pending(nodes={"n1": node(memory_available=GIB // 2)}, replicas=(replica(R.PENDING, state_changed_at=ago(1)),)),
        [ExplainReplica("r1", R.PENDING, "n1 has 0.5 GiB of memory free, 1.0 GiB are needed", "memory")],
    ),
    (
        "fetched: started",
        fetching(nodes={"n1": node()}),
        [StartReplica("r1", R.FETCHING, VERSION, "n1", BLOB, GIB, ENGINE)],
    ),
    (
        "fetching: the pull failed",
        fetching(jobs=(job(JobKind.PULL, JobState.FAILED, error_code="not_found", error="gone"),)),
        [FailReplica("r1", R.FETCHING, "not_found", "gone"), RefuseWaiting(VERSION, "not_found", LOAD_FAILED + "gone")],
    ),
    (
        "fetching: the pulled file is not in the store",
        fetching(jobs=(job(JobKind.PULL, JobState.SUCCEEDED, finished_at=ago(25)),)),
        [
            FailReplica("r1", R.FETCHING, "model_load_failed", "pypi:m no longer has this version"),
            RefuseWaiting(VERSION, "model_load_failed", LOAD_FAILED + "pypi:m no longer has this version"),
        ],
    ),
    (
        "starting: its worker serves",
        starting(workers={"r1": worker(slots=8, context_tokens=4096, memory_bytes=77)}),
        [ReadyReplica("r1", R.STARTING, 77, 0, 8, 4096)],
    ),
    *(
        (
            f"starting: its worker served ({state}) and has ended since",
            starting(departed={"r1": worker(state, slots=8, context_tokens=4096, memory_bytes=77)}, processes=(process(-9),)),
            [ReadyReplica("r1", R.STARTING, 77, 0, 8, 4096)],
        )
        for state in (WorkerState.READY, WorkerState.DRAINING)
    ),
    (
        "starting: its worker left before it was loaded",
        starting(departed={"r1": worker(WorkerState.LOADING)}, processes=(process(1),)),
        [
            FailReplica("r1", R.STARTING, "model_load_failed", "exited with code 1"),
            RefuseWaiting(VERSION, "model_load_failed", LOAD_FAILED + "exited with code 1"),
        ],
    ),
    (
        "starting: its worker could not load",
        starting(
            workers={"r1": worker(WorkerState.FAILED, error_code="invalid_model_file", error="cut short")},
            processes=(process(3),),
        ),
        [
            FailReplica("r1", R.STARTING, "invalid_model_file", "cut short"),
            RefuseWaiting(VERSION, "invalid_model_file", LOAD_FAILED + "cut short"),
        ],
    ),
    (
        "starting: its process ended",
        starting(processes=(process(1),)),
        [
            FailReplica("r1", R.STARTING, "model_load_failed", "exited with code 1"),
            RefuseWaiting(VERSION, "model_load_failed", LOAD_FAILED + "exited with code 1"),
        ],
    ),
    (
        "starting: its node reports why its process ended",
        starting(processes=(process(-9, reason=OUT_OF_MEMORY, error_code="insufficient_memory"),)),
        [
            FailReplica("r1", R.STARTING, "insufficient_memory", OUT_OF_MEMORY),
            RefuseWaiting(VERSION, "insufficient_memory", LOAD_FAILED + OUT_OF_MEMORY),
        ],
    ),
    (
        "starting: failed, and no request waits",
        starting(processes=(process(-11),), demand=with_demand(demand())),
        [FailReplica("r1", R.STARTING, "model_load_failed", "killed by signal 11")],
    ),
    (
        "starting: too slow",
        starting(
            replicas=(replica(R.STARTING, state_changed_at=ago(301)),), processes=(process(),), demand=with_demand(demand())
        ),
        [FailReplica("r1", R.STARTING, "model_load_failed", "it was not ready after 300 s")],
    ),
    (
        "starting: the job is done but there is no process",
        starting(
            jobs=(job(JobKind.START, JobState.SUCCEEDED, finished_at=ago(25)),),
            replicas=(replica(R.STARTING, state_changed_at=ago(25)),),
            demand=with_demand(demand()),
        ),
        [FailReplica("r1", R.STARTING, "model_load_failed", "its process ended while no agent watched it")],
    ),
    *(
        (
            f"starting: its process was stopped ({code})",
            starting(processes=(process(code),)),
            [StopReplica("r1", R.STARTING, PROCESS_STOPPED)],
        )
        for code in (0, -15, -2, 255)
    ),
    (
        "starting: its node was restarted after the job was done",
        starting(jobs=(job(JobKind.START, JobState.SUCCEEDED, finished_at=ago(25)),), agent_since={"n1": ago(1)}),
        [StopReplica("r1", R.STARTING, "node n1 was restarted")],
    ),
    (
        "starting: its node was restarted, and its new agent gets the job at once",
        starting(jobs=(job(JobKind.START, JobState.SENT, sent_at=ago(3)),), agent_since={"n1": ago(1)}),
        [SendJob("j1")],
    ),
    (
        "starting: its node's new agent has just started it",
        starting(jobs=(job(JobKind.START, JobState.SUCCEEDED, finished_at=ago(0)),), agent_since={"n1": ago(1)}),
        [],
    ),
    (
        "starting: not wanted",
        starting(deployments=(deployment(replicas_wanted=0, reason="why"),), demand=with_demand(demand())),
        [DrainReplica("r1", R.STARTING, "n1", "why")],
    ),
    (
        "ready: unused for longer than the platform's keep_alive",
        serving(demand=with_demand(demand(unused_s=301))),
        [UnwantDeployment(1, VERSION, "unused for longer than its keep_alive", unused=True)],
    ),
    (
        "ready: unused for longer than the caller's keep_alive",
        serving(demand=with_demand(demand(unused_s=11, keep_alive_s=10))),
        [UnwantDeployment(1, VERSION, "unused for longer than its keep_alive", unused=True)],
    ),
    (
        "ready: no demand known since it became ready",
        serving(demand={}, replicas=(replica(R.READY, state_changed_at=ago(900)),)),
        [UnwantDeployment(1, VERSION, "unused for longer than its keep_alive", unused=True)],
    ),
    (
        "ready: not wanted",
        serving(deployments=(deployment(replicas_wanted=0, reason="why"),)),
        [DrainReplica("r1", R.READY, "n1", "why")],
    ),
    (
        "ready: its worker drains on its own",
        serving(workers={"r1": worker(WorkerState.DRAINING)}),
        [DrainReplica("r1", R.READY, "n1", "its worker drains on its own", stop=False)],
    ),
    (
        "ready: its worker exited with 0",
        serving(workers={}, processes=(process(0),)),
        [DrainReplica("r1", R.READY, "n1", "its worker ended on its own", stop=False)],
    ),
    (
        "ready: crashed",
        serving(workers={}, processes=(process(-9),)),
        [FailReplica("r1", R.READY, "worker_lost", "killed by signal 9, probably because memory ran out")],
    ),
    (
        "ready: out of memory, to be retried",
        serving(workers={}, processes=(process(-9, reason=OUT_OF_MEMORY, error_code="insufficient_memory"),)),
        [FailReplica("r1", R.READY, "worker_lost", OUT_OF_MEMORY)],
    ),
    ("ready: silent", serving(workers={}), [FailReplica("r1", R.READY, "worker_lost", "its worker stopped reporting")]),
    (
        "ready: vanished",
        serving(workers={}, processes=()),
        [StopReplica("r1", R.READY, "its process ended while no agent watched it")],
    ),
    (
        "ready: vanished a moment ago, as its node reports",
        serving(workers={}, processes=(), worker_seen={"r1": ago(4)}),
        [StopReplica("r1", R.READY, "its process ended while no agent watched it")],
    ),
    (
        "ready: its process was stopped",
        serving(workers={}, processes=(process(-15),)),
        [StopReplica("r1", R.READY, PROCESS_STOPPED)],
    ),
    (
        "ready: its node was restarted; what its worker last reported is older",
        serving(processes=(), agent_since={"n1": ago(1)}),
        [StopReplica("r1", R.READY, "node n1 was restarted")],
    ),
    (
        "ready: ended while its node was restarted",
        serving(processes=(process(255),), agent_since={"n1": ago(1)}),
        [StopReplica("r1", R.READY, "node n1 was restarted")],
    ),
    ("ready: its node's new agent has adopted it", serving(agent_since={"n1": ago(1)}), []),
    (
        "ready: an answer resets the attempts",
        serving(replicas=(replica(R.READY, attempts=5),), workers={"r1": worker(answered=1)}),
        [ProveReplica("r1", R.READY)],
    ),
    (
        "ready: its settings changed",
        serving(replicas=(replica(R.READY, engine=OTHER),)),
        [DrainReplica("r1", R.READY, "n1", "its settings have changed")],
    ),
    (
        "starting: its settings changed",
        starting(replicas=(replica(R.STARTING, engine=OTHER),)),
        [DrainReplica("r1", R.STARTING, "n1", "its settings have changed")],
    ),
    (
        "ready: two with old settings get a third one",
        two(replica(R.READY, engine=OTHER), replica(R.READY, id="r2", engine=OTHER)),
        [CreateReplica(1, attempts=1, beside=True)],
    ),
    (
        "ready: the third one serves, so one of the two drains",
        two(replica(R.READY, engine=OTHER), replica(R.READY, id="r2", engine=OTHER), replica(R.READY, id="r3", engine=ENGINE)),
        [DrainReplica("r2", R.READY, "n1", "its settings have changed")],
    ),
    (
        "new settings: no memory for both, so the old one stops first",
        rolling(replica(R.PENDING, id="r2", reason=NO_ROOM), nodes={"n1": node(memory_total=GIB * 2)}),
        [DrainReplica("r1", R.READY, "n1", "its settings have changed, and there is no memory for both")],
    ),
    (
        "new settings: no memory for both yet",
        rolling(replica(R.PENDING, id="r2", reason=NO_ROOM, state_changed_at=ago(1)), nodes={"n1": node(memory_total=GIB * 2)}),
        [],
    ),
    (
        "new settings: no memory even without the old one, which stays",
        rolling(
            replica(R.PENDING, id="r2", reason="n1 has 0.2 GiB of memory free, 2.0 GiB are needed"),
            nodes={"n1": node(memory_available=GIB // 4)},
            needs=2 * GIB,
        ),
        [],
    ),
    (
        "new settings: a failed replica is retried later",
        rolling(replica(R.FAILED, id="r2", engine=ENGINE, error_code="x", reason="no luck", retry_at=ago(-5))),
        [],
    ),
    (
        "settings on trial that failed",
        rolling(replica(R.FAILED, id="r2", engine=ENGINE, error_code="x", reason="no luck"), on_trial=True),
        [PutBackSettings(1, ENGINE, "no luck")],
    ),
    (
        "settings on trial that failed before they were deployed again",
        rolling(replica(R.FAILED, id="r2", engine=ENGINE, error_code="x", reason="no luck"), on_trial=True, deployed_at=ago(1)),
        [CreateReplica(1, attempts=1, beside=True)],
    ),
    (
        "settings on trial, and other settings failed",
        rolling(replica(R.FAILED, id="r2", engine=EngineSettings(slots=3), error_code="x", reason="no luck"), on_trial=True),
        [CreateReplica(1, attempts=1, beside=True)],
    ),
    (
        "settings on trial that no node has the memory for",
        rolling(on_trial=True, needs=9 * GIB),
        [PutBackSettings(1, ENGINE, "it needs 9.0 GiB of memory and the largest node, n1, has 7.5 GiB for models")],
    ),
    (
        "settings on trial that fail while requests wait: they wait for the previous ones",
        rolling(
            replica(
                R.FAILED, id="r2", engine=ENGINE, error_code="invalid_model_file", reason="no luck", state_changed_at=ago(1)
            ),
            old=R.DRAINING,
            on_trial=True,
            demand=WAITS,
        ),
        [PutBackSettings(1, ENGINE, "no luck")],
    ),
    (
        "settings on trial: a replica is ready with them",
        rolling(replica(R.READY, id="r2", engine=ENGINE), on_trial=True),
        [KeepSettings(1, ENGINE), DrainReplica("r1", R.READY, "n1", "its settings have changed")],
    ),
    (
        "ready: device memory counts too",
        serving(workers={"r1": worker(memory_bytes=GIB, device_memory_bytes=GIB)}),
        [MeasureReplica("r1", R.READY, 2 * GIB)],
    ),
    (
        "ready: uses more memory than was reserved",
        serving(workers={"r1": worker(memory_bytes=2 * GIB)}),
        [MeasureReplica("r1", R.READY, 2 * GIB)],
    ),
    (
        "the node is lost: its replicas too, and requests wait",
        serving(nodes={"n1": node(state=NodeState.LOST, reporting=False)}, demand=WAITS),
        [StopReplica("r1", R.READY, "node n1 was lost")],
    ),
    ("drained: stopped", draining(), [StopReplica("r1", R.DRAINING, "why")]),
    ("drained: the process ended", draining(processes=(process(0),)), [StopReplica("r1", R.DRAINING, "why")]),
    (
        "draining for too long",
        draining(replicas=(replica(R.DRAINING, state_changed_at=ago(61)),), processes=(process(),)),
        [EndProcess("r1", "n1")],
    ),
    ("the next attempt starts at its time", failed(retry_at=ago(0)), [CreateReplica(1, 4)]),
    (
        "failures before a restart of the node do not count",
        restarted(failed(retry_at=ago(-50))),
        [CreateReplica(1, 1)],
    ),
    (
        "permanent failures before a restart of the node do not count",
        restarted(failed("insufficient_memory", state_changed_at=ago(5))),
        [CreateReplica(1, 1)],
    ),
    (
        "a permanent failure refuses requests for a while",
        failed("invalid_model_file", state_changed_at=ago(5)),
        [RefuseWaiting(VERSION, "invalid_model_file", LOAD_FAILED + "no luck")],
    ),
    (
        "a permanent failure is retried with new settings",
        failed("model_refused", state_changed_at=ago(5), engine=OTHER),
        [CreateReplica(1, 1)],
    ),
    (
        "too little memory is not retried again and again",
        failed("insufficient_memory", state_changed_at=ago(5)),
        [RefuseWaiting(VERSION, "insufficient_memory", LOAD_FAILED + "no luck")],
    ),
    ("a permanent failure is retried on a later request", failed("invalid_model_file"), [CreateReplica(1, 4)]),
    (
        "a failure, and no request waits",
        cluster(
            deployments=(deployment(),),
            replicas=(replica(R.FAILED, error_code="x", retry_at=ago(9)),),
            demand=with_demand(demand()),
        ),
        [UnwantDeployment(1, VERSION, "no request waits for it now", unused=True)],
    ),
    (
        "never fits",
        cluster(demand=WAITS, versions={VERSION: version(memory_bytes=9 * GIB)}),
        [
            RefuseWaiting(
                VERSION,
                "model_load_failed",
                LOAD_FAILED + "it needs 9.0 GiB of memory and the largest node, n1, has 7.5 GiB for models",
            )
        ],
    ),
    (
        "no node has its file",
        cluster(demand=WAITS, nodes={"n1": node(blobs=frozenset())}),
        [RefuseWaiting(VERSION, "model_load_failed", LOAD_FAILED + "no node has its file")],
    ),
    ("no node yet: it waits for one", cluster(demand=WAITS, nodes={}, watching_since=ago(1)), [WantVersion(VERSION)]),
    (
        "no node: refused",
        cluster(demand=WAITS, nodes={}),
        [RefuseWaiting(VERSION, "unavailable", LOAD_FAILED + "no node has joined")],
    ),
    (
        "requests for an unknown version",
        cluster(demand=with_demand(demand(waiting=1, digest="f" * 64))),
        [RefuseWaiting("f" * 64, "model_not_found", "model 'ffffffffffff' not found")],
    ),
    ("demand without requests or replicas", cluster(demand=with_demand(demand())), [ForgetDemand(VERSION)]),
    (
        "no tag is left: drained",
        serving(versions={VERSION: version(name="")}),
        [UnwantDeployment(1, VERSION, "the model was deleted", unused=False)],
    ),
    ("no tag is left and nothing runs: deleted", cluster(versions={VERSION: version(name="")}), [ForgetVersion(VERSION)]),
    ("a process of an unknown replica", cluster(processes=(process(),)), [EndProcess("r1", "n1")]),
    (
        "a process of an unknown replica, being stopped",
        cluster(processes=(process(),), jobs=(job(JobKind.STOP, JobState.SENT),)),
        [],
    ),
    ("a process of an unknown replica, ended", cluster(processes=(process(0),)), []),
    ("a process on the wrong node", serving(processes=(process(), process(node="n2"))), [EndProcess("r1", "n2")]),
    (
        "a node that does not report",
        cluster(nodes={"n1": node(reporting=False, last_seen_at=ago(11))}),
        [LoseNode("n1")],
    ),
    (
        "a node that was not watched",
        cluster(nodes={"n1": node(reporting=False, last_seen_at=ago(99))}, watching_since=ago(9)),
        [],
    ),
    (
        "a job that was not sent",
        starting(jobs=(job(JobKind.START, JobState.QUEUED, sends=0, sent_at=None),)),
        [SendJob("j1")],
    ),
    ("a job that no agent works on", starting(jobs=(job(JobKind.START, JobState.SENT, sent_at=ago(16)),)), [SendJob("j1")]),
    ("a job sent twice gets more time", starting(jobs=(job(JobKind.START, JobState.SENT, sends=2, sent_at=ago(16)),)), []),
    (
        "a job that is being worked on",
        starting(jobs=(job(JobKind.START, JobState.SENT, sent_at=ago(99)),), nodes={"n1": node(jobs=frozenset({"j1"}))}),
        [],
    ),
    (
        "a job that was just worked on",
        starting(jobs=(job(JobKind.START, JobState.SENT, sent_at=ago(99)),), job_seen={"j1": ago(3)}),
        [],
    ),
    (
        "a start of a replica that is over",
        cluster(jobs=(START_SENT,)),
        [FailJob("j1", "n1", "unavailable", "its replica is no longer wanted")],
    ),
    (
        "a pull on a lost node",
        cluster(nodes={"n1": node(state=NodeState.LOST, reporting=False)}, jobs=(job(JobKind.PULL, JobState.SENT),)),
        [FailJob("j1", "n1", "unavailable", "node n1 is lost")],
    ),
    (
        "a deletion on a lost node waits for it",
        cluster(
            nodes={"n1": node(state=NodeState.LOST, reporting=False)},
            jobs=(job(JobKind.DELETE, JobState.SENT, sent_at=ago(99)),),
        ),
        [],
    ),
    (
        "a deletion of a model that still drains",
        draining(
            versions={VERSION: version(name="")},
            processes=(process(),),
            jobs=(job(JobKind.DELETE, JobState.QUEUED, replica=None, version=VERSION, sends=0, sent_at=None),),
        ),
        [],
    ),
    (
        "a deletion of one of two names",
        serving(jobs=(job(JobKind.DELETE, JobState.QUEUED, replica=None, version=VERSION, sends=0, sent_at=None),)),
        [SendJob("j1")],
    ),
]


@pytest.mark.parametrize(("seen", "decided"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_each_state_gives_these_decisions(seen: ClusterState, decided: Sequence[Decision]) -> None:
    assert list(reconcile(seen)) == decided


def test_the_least_recently_used_idle_model_is_unloaded() -> None:
    other = "c" * 64
    seen = serving(
        versions={VERSION: version(), other: version(digest=other, name="other:latest", memory_bytes=7 * GIB)},
        nodes={"n1": node()},
        deployments=(deployment(), deployment(id=2, version=other, memory_bytes=7 * GIB)),
        replicas=(replica(R.READY), replica(R.PENDING, id="r2", deployment=2, version=other)),
        demand={VERSION: demand(), other: demand(waiting=1, digest=other)},
    )
    unwant, explain = reconcile(seen)
    assert unwant == UnwantDeployment(1, VERSION, "unloaded to make room for other:latest", unused=True)
    assert isinstance(explain, ExplainReplica)
    assert "unloading an idle model on n1" in explain.reason


def test_a_retry_waits_for_its_time() -> None:
    assert reconcile(failed(retry_at=NOW.replace(hour=13))) == ()


TWO_NODES = {"n1": node(), "n2": node("n2", blobs=frozenset())}
FETCHABLE = {VERSION: version(source="pypi:m")}


def test_replicas_placed_in_one_turn_go_to_different_nodes() -> None:
    two = pending(
        versions=FETCHABLE,
        nodes=TWO_NODES,
        deployments=(deployment(replicas_wanted=2),),
        replicas=(replica(R.PENDING, id="r1"), replica(R.PENDING, id="r2")),
    )
    assert [(decision.replica, decision.node) for decision in reconcile(two) if isinstance(decision, StartReplica)] == [
        ("r1", "n1")
    ]
    assert [(decision.replica, decision.node) for decision in reconcile(two) if isinstance(decision, FetchModel)] == [
        ("r2", "n2")
    ]


@pytest.mark.parametrize("state", [R.FETCHING, R.STARTING, R.READY])
def test_an_assigned_replica_sends_the_next_one_to_another_node(state: R) -> None:
    """Already from its assignment, before it serves."""
    second = pending(
        versions=FETCHABLE,
        nodes={"n1": node(), "n2": node("n2")},
        deployments=(deployment(replicas_wanted=2),),
        replicas=(replica(state, id="r1", state_changed_at=ago(1)), replica(R.PENDING, id="r2")),
    )
    assert [
        decision.node for decision in reconcile(second) if isinstance(decision, StartReplica) and decision.replica == "r2"
    ] == ["n2"]


def test_a_model_from_a_path_stays_on_the_node_with_the_file() -> None:
    second = pending(
        nodes=TWO_NODES,
        deployments=(deployment(replicas_wanted=2),),
        replicas=(replica(R.STARTING, id="r1", state_changed_at=ago(1)), replica(R.PENDING, id="r2")),
    )
    assert [
        decision.node for decision in reconcile(second) if isinstance(decision, StartReplica) and decision.replica == "r2"
    ] == ["n1"]


def test_a_node_that_failed_to_fetch_is_avoided_if_another_has_room() -> None:
    failed = replica(R.FAILED, id="r0", node="n2", error_code="model_load_failed", retry_at=ago(1))
    again = pending(
        versions=FETCHABLE,
        nodes=TWO_NODES,
        deployments=(deployment(replicas_wanted=2),),
        replicas=(failed, replica(R.STARTING, id="r1", state_changed_at=ago(1)), replica(R.PENDING, id="r2")),
    )
    assert [
        decision.node for decision in reconcile(again) if isinstance(decision, StartReplica) and decision.replica == "r2"
    ] == ["n1"]


def test_a_replica_with_new_settings_starts_next_to_the_old_one() -> None:
    old = replica(R.READY, id="r1", engine=EngineSettings(slots=7))
    renewed = pending(versions=FETCHABLE, nodes=TWO_NODES, replicas=(old, replica(R.PENDING, id="r2")))
    assert [decision.node for decision in reconcile(renewed) if isinstance(decision, StartReplica)] == ["n1"]
