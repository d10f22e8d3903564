"""Cluster states for the pure functions, with parts to change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from services.protocol.queue import Demand
from services.protocol.reports import WorkerReport, WorkerState
from services.registry.control.cluster_state import (
    ClusterState,
    DeploymentView,
    JobView,
    NodeView,
    ProcessView,
    ReplicaView,
    VersionView,
)
from services.registry.states import JobKind, JobState, NodeState, Origin, ReplicaState

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
GIB = 1024**3
VERSION = "a" * 64
BLOB = "sha256:" + "b" * 64


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def version(**changes: Any) -> VersionView:
    facts = {
        "digest": VERSION,
        "name": "m:latest",
        "pull_name": "registry.ollama.ai/library/m:latest",
        "model_blob": BLOB,
        "file_bytes": GIB,
        "memory_bytes": GIB,
        "source": "",
    }
    return VersionView(**{**facts, **changes})


def node(name: str = "n1", **changes: Any) -> NodeView:
    facts = {
        "state": NodeState.READY,
        "reporting": True,
        "last_seen_at": NOW,
        "memory_total": 8 * GIB,
        "memory_available": 8 * GIB,
        "device_memory": 0,
        "disk_free": 50 * GIB,
        "blobs": frozenset({BLOB}),
    }
    return NodeView(**{"name": name, **facts, **changes})


def deployment(**changes: Any) -> DeploymentView:
    facts = {"id": 1, "version": VERSION, "origin": Origin.ON_DEMAND, "replicas_wanted": 1, "memory_bytes": GIB}
    return DeploymentView(**{**facts, **changes})


def replica(state: ReplicaState, **changes: Any) -> ReplicaView:
    placed = None if state is ReplicaState.PENDING else "n1"
    facts = {"id": "r1", "deployment": 1, "version": VERSION, "node": placed, "state": state, "state_changed_at": ago(30)}
    return ReplicaView(**{**facts, "memory_estimated": GIB if placed else 0, **changes})


def job(kind: JobKind, state: JobState, **changes: Any) -> JobView:
    facts = {"id": "j1", "kind": kind, "node": "n1", "state": state, "replica": "r1", "sends": 1, "sent_at": ago(1)}
    return JobView(**{**facts, **changes})


def worker(state: WorkerState = WorkerState.READY, **changes: Any) -> WorkerReport:
    facts = {"worker": "w", "replica": "r1", "version": VERSION, "node": "n1", "state": state, "memory_bytes": 0}
    return WorkerReport(**{**facts, **changes})


def process(exit_code: int | None = None, **changes: Any) -> ProcessView:
    return ProcessView(**{"replica": "r1", "node": "n1", "exit_code": exit_code, **changes})


def demand(waiting: int = 0, unused_s: float = 1, keep_alive_s: float | None = None, digest: str = VERSION) -> Demand:
    return Demand(digest, waiting, int(unused_s * 1000), None if keep_alive_s is None else int(keep_alive_s * 1000))


def cluster(**changes: Any) -> ClusterState:
    """One node and one version; nothing is wanted."""
    facts = {"now": NOW, "watching_since": ago(1000), "versions": {VERSION: version()}, "nodes": {"n1": node()}}
    return ClusterState(**{**facts, **changes})


def serving(**changes: Any) -> ClusterState:
    """One replica serves and was just used, and everything that runs is wanted."""
    facts = {
        "deployments": (deployment(),),
        "replicas": (replica(ReplicaState.READY),),
        "workers": {"r1": worker()},
        "processes": (process(),),
        "demand": {VERSION: demand()},
    }
    return cluster(**{**facts, **changes})


def with_demand(one: Demand) -> dict[str, Demand]:
    return {one.version: one}
