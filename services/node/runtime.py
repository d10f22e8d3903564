"""How workers are started on this machine: the interface that `processes.py` implements."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from services.protocol.engine import EngineSettings
from services.protocol.reports import Device, ProcessReport


class StartSpec(msgspec.Struct, frozen=True):
    """`version` is the manifest's digest (64 hex digits), `model_path` the GGUF blob. The engine's LoRA adapters are paths."""

    replica: str
    version: str
    model_path: Path
    engine: EngineSettings


class Runtime(Protocol):
    """Its methods are called from several threads."""

    def start(self, spec: StartSpec) -> None:
        """Does nothing where the replica's worker runs. Raises ModelLoadFailed where it cannot be started."""

    def stop(self, replica: str) -> None:
        """Drains the replica's worker and returns when it has ended. Does nothing where there is none."""

    def devices(self) -> tuple[Device, ...] | None:
        """The accelerators that workers can use; None where that cannot be told now. May take a while."""

    def reports(self) -> tuple[ProcessReport, ...]:
        """Workers that run, and for a while those that ended by themselves."""

    def running(self) -> frozenset[str]:
        """The replicas whose worker runs. Takes no longer than a look."""

    def close(self) -> None:
        """Drains and ends every worker; nothing is started any more."""
