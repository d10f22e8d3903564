"""How workers are started on this machine: the interface that processes.py and containers/runtime.py implement, and what they
share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import msgspec

from services.node.hardware import Memory
from services.protocol.engine import EngineSettings
from services.protocol.engine_variables import to_environment
from services.protocol.errors import BadRequest
from services.protocol.reports import Device, ProcessReport

#: How long a worker that ended by itself is reported, so that the registry sees it.
ENDED_KEPT_S = 60.0
#: A worker ends its own drain after the deadline; this is for the rest of its way out.
KILL_GRACE_S = 5.0

_LAST_LINE_LIMIT = 500
_REPLICA = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class StartSpec(msgspec.Struct, frozen=True):
    """`version` is the manifest's digest (64 hex digits), `model_path` the GGUF blob. The engine's LoRA adapters are paths.
    `memory_bytes` is what placement reserved, 0 where it did not say."""

    replica: str
    version: str
    model_path: Path
    engine: EngineSettings
    memory_bytes: int = 0

    def environment(self, *, drain_s: float) -> dict[str, str]:
        """The worker's own settings."""
        return {
            **to_environment(self.engine),
            "CORRAL_REPLICA": self.replica,
            "CORRAL_VERSION": self.version,
            "CORRAL_MODEL_PATH": str(self.model_path),
            "CORRAL_DRAIN_S": str(drain_s),
        }


class Runtime(Protocol):
    """Its methods are called from several threads."""

    def start(self, spec: StartSpec) -> None:
        """Does nothing where the replica's worker runs. Raises ModelLoadFailed where it cannot be started."""

    def stop(self, replica: str) -> None:
        """Drains the replica's worker and returns when it has ended. Does nothing where there is none."""

    def devices(self) -> tuple[Device, ...] | None:
        """The accelerators that workers can use; None where that cannot be told now. May take a while."""

    def cpus(self) -> int:
        """Cores that workers may use."""

    def memory(self) -> Memory:
        """What workers may take together, and what of it is free."""

    def reports(self) -> tuple[ProcessReport, ...]:
        """Workers that run, and for a while those that ended by themselves. Takes no longer than a look."""

    def running(self) -> frozenset[str]:
        """The replicas whose worker runs. Takes no longer than a look."""

    def replaced(self) -> bool:
        """Whether another agent is about to take this one's place, which goes on with the workers as they are."""

    def close(self) -> None:
        """Drains and ends every worker; nothing is started any more."""

    def hurry(self) -> None:
        """Whoever waits for workers to drain kills them now."""


def require_replica_id(replica: str) -> None:
    """Raises BadRequest for what cannot be part of a file's or a container's name."""
    if not _REPLICA.fullmatch(replica):
        raise BadRequest(f"{replica!r} is no replica id")


def last_line(output: bytes) -> str:
    """The last one with anything in it."""
    lines = output.decode(errors="replace").split("\n")
    return next((line.strip()[:_LAST_LINE_LIMIT] for line in reversed(lines) if line.strip()), "")
