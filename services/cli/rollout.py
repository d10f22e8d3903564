"""Waits for a rollout for `corral deploy`: shows each step on stderr until the replicas are ready or one has failed."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.cli.console import err
from services.cli.errors import CommandError
from services.cli.server import Server

POLL_INTERVAL_S = 0.3


class Phase(enum.Enum):
    RUNNING = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


@dataclass(frozen=True)
class Progress:
    """`text` is the current step, or why the rollout failed."""

    phase: Phase
    text: str


def replica_ids(server: Server) -> frozenset[str]:
    return frozenset(replica["id"] for replica in server.get("/registry/v1/replicas")["replicas"])


def wait_for_rollout(server: Server, deployed: dict[str, Any], earlier: frozenset[str]) -> None:
    """Waits until the rollout is done. `earlier` has the replicas from before it. Raises CommandError with the reason if it
    fails."""
    shown = ""
    while True:
        progress = _read_progress(server, deployed, earlier)
        if progress.phase is Phase.FAILED:
            raise CommandError(f"'{deployed['model']}' was not deployed: {progress.text}")
        if progress.text != shown:
            err.print(progress.text)
            shown = progress.text
        if progress.phase is Phase.DONE:
            return
        time.sleep(POLL_INTERVAL_S)


def _read_progress(server: Server, deployed: dict[str, Any], earlier: frozenset[str]) -> Progress:
    rows = server.get("/registry/v1/deployments")["deployments"]
    row = next((row for row in rows if row["version"] == deployed["version"]), None)
    replicas = [
        replica
        for replica in server.get("/registry/v1/replicas")["replicas"]
        if replica["version"] == deployed["version"] and replica["id"] not in earlier
    ]
    return rollout_progress(deployed, row, replicas)


def rollout_progress(deployed: dict[str, Any], row: dict[str, Any] | None, replicas: Sequence[dict[str, Any]]) -> Progress:
    """How far the rollout has got. `deployed` is the deployment as requested, `row` as it is now, and `replicas` are its new
    replicas, newest first."""
    if row is None:
        return Progress(Phase.FAILED, "the deployment was removed")
    if any(row[field] != deployed[field] for field in ("overrides", "origin", "replicas")):
        return Progress(Phase.FAILED, row["reason"] or "it was deployed again with other settings")
    if row["updated"] >= row["replicas"]:
        return Progress(Phase.DONE, _ready(row))
    if replicas and replicas[0]["state"] == "failed" and not row["on_trial"]:
        return Progress(Phase.FAILED, replicas[0]["reason"])
    steps = [step for replica in replicas[:1] if (step := _step(replica))]
    return Progress(Phase.RUNNING, "; ".join([*steps, _ready(row)]))


def _ready(row: dict[str, Any]) -> str:
    return f"ready {row['updated']} of {row['replicas']}"


def _step(replica: dict[str, Any]) -> str:
    match replica["state"]:
        case "starting":
            return f"loading {replica['load_progress']:.0%}"
        case "pending" | "fetching":
            return str(replica["reason"])
        case _:
            return ""
