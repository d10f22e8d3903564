"""Runtime: the interface that starts and stops workers on this machine, and what its implementations (processes.py and
containers/runtime.py) share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import msgspec

from services.node.hardware import Memory
from services.process.engine_variables import to_environment
from services.protocol.engine import EngineSettings
from services.protocol.errors import BadRequest
from services.protocol.reports import Device, ProcessReport

#: How long a worker that ended by itself is still reported, so that the registry sees it.
ENDED_KEPT_S = 60.0

_LAST_LINE_LIMIT = 500
_REPLICA = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class StartSpec(msgspec.Struct, frozen=True):
    """What to start. `version` is the manifest's digest (64 hex digits), `model_path` the GGUF blob. The engine's LoRA adapters
    are paths. `memory_bytes` is what placement reserved, 0 if unknown."""

    replica: str
    version: str
    model_path: Path
    engine: EngineSettings
    memory_bytes: int = 0

    def environment(self, *, drain_s: float) -> dict[str, str]:
        """The worker's settings as environment variables."""
        return {
            **to_environment(self.engine),
            "CORRAL_REPLICA": self.replica,
            "CORRAL_VERSION": self.version,
            "CORRAL_MODEL_PATH": str(self.model_path),
            "CORRAL_DRAIN_S": str(drain_s),
        }


class Runtime(Protocol):
    """Starts and stops workers. Its methods are called from several threads."""

    def start(self, spec: StartSpec) -> None:
        """Starts the replica's worker. Does nothing if it runs. Raises ModelLoadFailed if it cannot be started."""

    def stop(self, replica: str) -> None:
        """Drains the replica's worker and returns when it has ended. Does nothing if there is none."""

    def devices(self) -> tuple[Device, ...] | None:
        """The accelerators that workers can use; None if they are unknown now. Slow: starts a process or a container."""

    def cpus(self) -> int:
        """The number of cores that workers may use."""

    def memory(self) -> Memory:
        """The memory that all workers together may use, and how much of it is free."""

    def reports(self) -> tuple[ProcessReport, ...]:
        """The workers that run, and those that ended by themselves within ENDED_KEPT_S. Fast."""

    def running(self) -> frozenset[str]:
        """The replicas whose worker runs. Fast."""

    def replaced(self) -> bool:
        """Whether another agent is about to replace this one and will adopt its workers."""

    def close(self) -> None:
        """Drains and ends every worker. Later starts are refused."""

    def hurry(self) -> None:
        """Ends all draining now: `stop` and `close` kill the workers that they wait for."""


def require_replica_id(replica: str) -> None:
    """Raises BadRequest if the id cannot be part of a file name or a container name."""
    if not _REPLICA.fullmatch(replica):
        raise BadRequest(f"{replica!r} is not a replica id")


def last_line(output: bytes) -> str:
    """The last line that is not blank, stripped and cut to 500 characters."""
    lines = output.decode(errors="replace").split("\n")
    return next((line.strip()[:_LAST_LINE_LIMIT] for line in reversed(lines) if line.strip()), "")
