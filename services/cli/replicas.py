"""`corral ps` and `stop`: the models that are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from services.cli.console import out, print_json, print_table
from services.cli.errors import CommandError, RequestRefused
from services.cli.models import Json, ModelArgument
from services.cli.quantities import size_text, time_text
from services.cli.server import Server, connect


def ps(json: Json = False) -> None:
    """List the models that are loaded, and for an admin those that are being loaded."""
    server = connect()
    loaded = server.get("/api/ps")
    replicas = _replicas(server)
    loading = [replica for replica in replicas if replica["state"] in ("pending", "fetching", "starting")]
    if json:
        print_json(loaded | {"loading": loading})
        return
    serving = {replica["version"] for replica in replicas if replica["state"] in ("ready", "draining")}
    # The gateway counts what a loading model takes as loaded.
    loads_only = {replica["version"] for replica in loading} - serving
    print_loaded([model for model in loaded["models"] if model["digest"] not in loads_only], loading)


def _replicas(server: Server) -> list[dict[str, Any]]:
    """Empty for a caller who may not ask."""
    try:
        replicas: list[dict[str, Any]] = server.get("/registry/v1/replicas")["replicas"]
    except RequestRefused as error:
        if error.status in (401, 403, 503):
            return []
        raise
    return replicas


def print_loaded(models: list[dict[str, Any]], loading: Sequence[dict[str, Any]] = ()) -> None:
    rows = [
        (
            model["name"],
            model["digest"][:12],
            size_text(model["size"]),
            _processor(model["size"], model["size_vram"]),
            str(model.get("context_length") or ""),
            _until(datetime.fromisoformat(model["expires_at"])),
        )
        for model in models
    ]
    rows += [
        (replica["model"], replica["version"][:12], size_text(replica["memory_bytes"]), "-", "", _progress(replica))
        for replica in loading
    ]
    print_table(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows)


def stop(model: ModelArgument) -> None:
    """Unload a model as soon as nobody uses it."""
    try:
        connect().post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
    except RequestRefused as error:
        if error.status == 404:
            raise CommandError(f'couldn\'t find model "{model}" to stop') from None
        raise
    out.print(f"stopping '{model}'")


def _processor(size: int, size_vram: int) -> str:
    if size == 0:
        return "Unknown"
    gpu = round(100 * size_vram / size)
    if gpu in (0, 100):
        return "100% GPU" if gpu else "100% CPU"
    return f"{100 - gpu}%/{gpu}% CPU/GPU"


def _progress(replica: dict[str, Any]) -> str:
    if replica["state"] == "starting":
        return f"Loading {replica['load_progress']:.0%}"
    return "Fetching" if replica["state"] == "fetching" else f"Waiting: {replica['reason']}"


def _until(expires_at: datetime) -> str:
    return "Stopping..." if expires_at < datetime.now(UTC) else time_text(expires_at)
