"""The decisions of the control loop, as values; executor.py carries them out.

`seen` is the state that a replica was in when the decision was made. If it is in another state by then, the decision is
dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.protocol.engine import EngineSettings
from services.registry.states import ReplicaState


@dataclass(frozen=True)
class LoseNode:
    """ready → lost: the node has not reported for `node_lost_after_s`."""

    node: str


@dataclass(frozen=True)
class WantVersion:
    """Requests wait for the version: its deployment, created on demand if there is none, wants at least one replica."""

    version: str


@dataclass(frozen=True)
class UnwantDeployment:
    """The deployment wants no replicas any longer. If `unused`, the decision is dropped when a request has arrived since."""

    deployment: int
    version: str
    reason: str
    unused: bool


@dataclass(frozen=True)
class WidenContext:
    """Requests ask for a longer context than the replicas have, and no replica is in use: change the settings to `engine`."""

    deployment: int
    engine: EngineSettings


@dataclass(frozen=True)
class CreateReplica:
    """A new pending replica. `attempts` is 1 plus the number of failures in a row before it. `beside`: one more than wanted,
    which replaces a replica with outdated settings when it is ready."""

    deployment: int
    attempts: int
    beside: bool = False


@dataclass(frozen=True)
class KeepSettings:
    """The settings on trial work: a replica is ready with them, so the previous ones are dropped."""

    deployment: int
    engine: EngineSettings


@dataclass(frozen=True)
class PutBackSettings:
    """The settings on trial (`engine`) failed: the deployment gets its previous ones back."""

    deployment: int
    engine: EngineSettings
    reason: str


@dataclass(frozen=True)
class FetchModel:
    """pending → fetching: the node pulls the version from its source."""

    replica: str
    seen: ReplicaState
    version: str
    node: str
    memory_bytes: int
    source: str
    name: str


@dataclass(frozen=True)
class StartReplica:
    """pending, fetching → starting, with a Start job."""

    replica: str
    seen: ReplicaState
    version: str
    node: str
    model_blob: str
    memory_bytes: int
    engine: EngineSettings


@dataclass(frozen=True)
class ExplainReplica:
    """Why the replica stays pending. `short_of` is a services.registry.control.placement.Shortage."""

    replica: str
    seen: ReplicaState
    reason: str
    short_of: str


@dataclass(frozen=True)
class ReadyReplica:
    """starting → ready. `device_memory` is the part of `memory_bytes` that is on accelerators."""

    replica: str
    seen: ReplicaState
    memory_bytes: int
    device_memory: int
    slots: int
    context_tokens: int


@dataclass(frozen=True)
class MeasureReplica:
    """The worker uses noticeably more memory than was recorded."""

    replica: str
    seen: ReplicaState
    memory_bytes: int


@dataclass(frozen=True)
class DrainReplica:
    """starting, ready → draining. `stop`: with a Stop job; false if the worker is already draining or has ended."""

    replica: str
    seen: ReplicaState
    node: str
    reason: str
    stop: bool = True


@dataclass(frozen=True)
class ProveReplica:
    """The replica has answered a request: `attempts` goes back to 1."""

    replica: str
    seen: ReplicaState


@dataclass(frozen=True)
class StopReplica:
    """Any live state → stopped. Not a failure: it does not count towards `attempts`."""

    replica: str
    seen: ReplicaState
    reason: str


@dataclass(frozen=True)
class FailReplica:
    """Any live state → failed. `code` names a class of services.protocol.errors."""

    replica: str
    seen: ReplicaState
    code: str
    reason: str


@dataclass(frozen=True)
class EndProcess:
    """A worker process runs that should not: stop it with a Stop job."""

    replica: str
    node: str


@dataclass(frozen=True)
class RefuseWaiting:
    """Fail all requests that wait for the version, with this error."""

    version: str
    code: str
    message: str


@dataclass(frozen=True)
class ForgetDemand:
    """The version has no live replicas and no waiting requests: delete its demand record from Redis."""

    version: str


@dataclass(frozen=True)
class ForgetVersion:
    """No tag names or keeps the version, it has no live replicas, and no requests wait for it: delete its rows."""

    version: str


@dataclass(frozen=True)
class SendJob:
    """Send the job to the broker, for the first time or again."""

    job: str


@dataclass(frozen=True)
class FailJob:
    """Give the job up: its outcome is no longer needed, or its node is lost."""

    job: str
    node: str
    code: str
    message: str


ReplicaDecision = (
    FetchModel
    | StartReplica
    | ExplainReplica
    | ReadyReplica
    | MeasureReplica
    | ProveReplica
    | DrainReplica
    | StopReplica
    | FailReplica
)
DeploymentDecision = WantVersion | UnwantDeployment | WidenContext | KeepSettings | PutBackSettings
Decision = (
    ReplicaDecision
    | DeploymentDecision
    | LoseNode
    | CreateReplica
    | EndProcess
    | RefuseWaiting
    | ForgetDemand
    | ForgetVersion
    | SendJob
    | FailJob
)
