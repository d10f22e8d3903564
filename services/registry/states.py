"""The states that rows can be in, drawn."""

from __future__ import annotations

import enum


class ReplicaState(enum.StrEnum):
    """One attempt at serving a version on one node.

        pending ──▶ fetching ──▶ starting ──▶ ready ──▶ draining ──▶ stopped
           │ └──────────────────▲   │           │          ▲  │
           │            │           └───────────┼──────────┘  │
           ▼            ▼                       ▼             ▼
        stopped      stopped                 failed ◀── any state above but stopped

    All transitions are decided by reconcile.py and written by replicas.py; this is what causes them:

    new → pending         requests wait for the version, or a pinned deployment has too few replicas
    pending → fetching    placement chose a node that must first fetch the model's file
    pending → starting    placement chose a node that holds it; a Start job goes to that node
    fetching → starting   the node reports the file as verified; a Start job goes to it
    starting → ready      the worker reports that it serves
    starting → draining   unwanted before it served; a Stop job goes to the node
    ready → draining      idle for longer than its keep_alive, evicted, deleted, or the worker drains on its own
    pending, fetching → stopped   unwanted before anything ran
    draining → stopped    the node reports the process as ended
    any → failed          the worker reports a failed load, its process ended, it went silent, a job of it failed, it took too
                          long to start, or the node was lost

    `stopped` and `failed` are final: the next attempt is a new row, so that what an old process still reports can never be
    taken for the new one. A failed row says in `retry_at` from when a successor may be made, and in `attempts` how many have
    failed in a row.
    """

    PENDING = "pending"
    FETCHING = "fetching"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        return self in (ReplicaState.STOPPED, ReplicaState.FAILED)


class NodeState(enum.StrEnum):
    """`ready ⇄ lost`: lost after ten seconds without a report, ready again with the next one."""

    READY = "ready"
    LOST = "lost"


class CopyState(enum.StrEnum):
    """`verified ⇄ missing`: a node's copy of a blob, as its reports list it."""

    VERIFIED = "verified"
    MISSING = "missing"


class JobState(enum.StrEnum):
    """`queued → sent → succeeded | failed`. Queued is a row that no broker has seen; sent may be sent again."""

    QUEUED = "queued"
    SENT = "sent"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED)


class JobKind(enum.StrEnum):
    """The tags of services.protocol.jobs.Job."""

    PULL = "pull"
    START = "start"
    STOP = "stop"
    DELETE = "delete"


class Origin(enum.StrEnum):
    """Why a deployment exists: requests waited for its version, or somebody pinned it."""

    ON_DEMAND = "on_demand"
    PINNED = "pinned"
