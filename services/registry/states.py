"""The states of replicas, nodes, blob copies and jobs, and their transitions."""

from __future__ import annotations

import enum


class ReplicaState(enum.StrEnum):
    """One attempt at serving a version on one node.

        pending ──▶ fetching ──▶ starting ──▶ ready ──▶ draining
              └───────────────────▲  └───────────────────▲

        stopped, failed ◀── any state above

    replicas.py writes all transitions. Their causes:

    new → pending         the deployment has too few replicas, or a new one replaces a replica with outdated settings
    pending → fetching    placement chose a node that must first fetch the model's file
    pending → starting    placement chose a node that holds it; a Start job goes to that node
    fetching → starting   the node reports the file as verified; a Start job goes to it
    starting → ready      the worker reports that it is ready
    starting → draining   no longer wanted; a Stop job goes to the node
    ready → draining      idle for longer than its keep_alive, evicted, deleted, replaced, or the worker drains by itself
    pending, fetching → stopped   no longer wanted, and nothing ran yet
    draining → stopped    the node reports the process as ended
    starting, ready → stopped   its process was signalled to end, or ended while no agent on its node watched
    any on a node → stopped     the node was lost or removed
    any → failed          the worker reports a failed load, its process ended by itself, it went silent, one of its jobs
                          failed, or it took too long to start

    `stopped` and `failed` are final: the next attempt is a new row, so that late reports of the old process are never taken for
    the new one. `retry_at` of a failed row is when the next attempt may start, `attempts` the number of failures in a row. A
    stopped replica, an answered request, a restart of the node's agent, or a new deployment by an admin resets that number.
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
    """`ready ⇄ lost`: lost after `node_lost_after_s` without a report, ready again with the next one."""

    READY = "ready"
    LOST = "lost"


class CopyState(enum.StrEnum):
    """`verified ⇄ missing`: whether a node's reports list its copy of a blob."""

    VERIFIED = "verified"
    MISSING = "missing"


class JobState(enum.StrEnum):
    """`queued → sent → succeeded | failed`. A queued job was never given to the broker; a sent one may be sent again."""

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
    """Why a deployment exists: requests waited for its version (on_demand), or an admin deployed it with replicas (pinned)."""

    ON_DEMAND = "on_demand"
    PINNED = "pinned"
