"""What the control loop may decide. Each is a value; loop.py acts on it, once, and only where `seen` still holds."""

from __future__ import annotations

from dataclasses import dataclass

from services.protocol.engine import EngineSettings
from services.registry.states import ReplicaState


@dataclass(frozen=True)
class LoseNode:
    """It has not reported for too long."""

    node: str


@dataclass(frozen=True)
class WantVersion:
    """Requests wait for it: one replica on demand."""

    version: str


@dataclass(frozen=True)
class UnwantDeployment:
    """On demand, and demanded no more. `unused` ones go only where no request has come meanwhile."""

    deployment: int
    version: str
    reason: str
    unused: bool


@dataclass(frozen=True)
class CreateReplica:
    """The deployment has too few. `attempts` counts the failures in a row, this try included."""

    deployment: int
    attempts: int


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
    """It stays pending; this is why. `short_of` is one word for it (see services.registry.placement.Shortage)."""

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
    """Its worker takes noticeably more memory than was known."""

    replica: str
    seen: ReplicaState
    memory_bytes: int


@dataclass(frozen=True)
class DrainReplica:
    """starting, ready → draining, with a Stop job unless the worker drains already."""

    replica: str
    seen: ReplicaState
    node: str
    reason: str
    stop: bool = True


@dataclass(frozen=True)
class StopReplica:
    """pending, fetching, draining → stopped: nothing of it runs."""

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
    """A worker runs that nobody wants: a Stop job for it."""

    replica: str
    node: str


@dataclass(frozen=True)
class RefuseWaiting:
    """Nothing will serve the requests that wait for the version; `code` and `message` are for their callers."""

    version: str
    code: str
    message: str


@dataclass(frozen=True)
class ForgetDemand:
    """Nothing of the version is loaded and nobody waits: its record of demand goes."""

    version: str


@dataclass(frozen=True)
class ForgetVersion:
    """No tag names it and nothing of it runs: its rows go."""

    version: str


@dataclass(frozen=True)
class SendJob:
    """Hand it to the broker, for the first time or again."""

    job: str


@dataclass(frozen=True)
class FailJob:
    """It cannot be done any more."""

    job: str
    node: str
    code: str
    message: str


ReplicaDecision = (
    FetchModel | StartReplica | ExplainReplica | ReadyReplica | MeasureReplica | DrainReplica | StopReplica | FailReplica
)
Decision = (
    ReplicaDecision
    | LoseNode
    | WantVersion
    | UnwantDeployment
    | CreateReplica
    | EndProcess
    | RefuseWaiting
    | ForgetDemand
    | ForgetVersion
    | SendJob
    | FailJob
)
