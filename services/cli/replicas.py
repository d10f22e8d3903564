"""`corral ps` and `stop`: the models that are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    queues = queues_of(server)
    if json:
        print_json(loaded | {"loading": loading, "queues": list(queues.values())})
        return
    serving = {replica["version"] for replica in replicas if replica["state"] in ("ready", "draining")}
    # The gateway counts what a loading model takes as loaded.
    loads_only = {replica["version"] for replica in loading} - serving
    print_loaded([model for model in loaded["models"] if model["digest"] not in loads_only], loading, queues=queues)


def queues_of(server: Server) -> dict[str, dict[str, Any]]:
    """By the version's digest. Empty where the server has none to show: an Ollama, say."""
    try:
        return {queue["digest"]: queue for queue in server.get("/api/queue")["models"]}
    except RequestRefused as error:
        if error.status == 404:
            return {}
        raise


def _replicas(server: Server) -> list[dict[str, Any]]:
    """Empty for a caller who may not ask."""
    try:
        replicas: list[dict[str, Any]] = server.get("/registry/v1/replicas")["replicas"]
    except RequestRefused as error:
        if error.status in (401, 403, 503):
            return []
        raise
    return replicas


def print_loaded(
    models: list[dict[str, Any]], loading: Sequence[dict[str, Any]] = (), *, queues: Mapping[str, dict[str, Any]]
) -> None:
    rows = [
        (
            model["name"],
            model["digest"][:12],
            size_text(model["size"]),
            _processor(model["size"], model["size_vram"]),
            str(model.get("context_length") or ""),
            *_load(queues.get(model["digest"])),
            _until(datetime.fromisoformat(model["expires_at"])),
        )
        for model in models
    ]
    rows += [
        (
            replica["model"],
            replica["version"][:12],
            size_text(replica["memory_bytes"]),
            "-",
            "",
            *_load(queues.get(replica["version"])),
            _progress(replica),
        )
        for replica in loading
    ]
    print_table(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "RUNNING", "WAITING", "UNTIL"), rows)


def stop(model: ModelArgument) -> None:
    """Unload a model as soon as nobody uses it."""
    try:
        connect().post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
    except RequestRefused as error:
        if error.status == 404:
            raise CommandError(f'couldn\'t find model "{model}" to stop') from None
        raise
    out.print(f"stopping '{model}'")


def _load(queue: dict[str, Any] | None) -> tuple[str, str]:
    """Requests that run, of those that could; those that wait, and how long the first of them has."""
    if queue is None:
        return "-", "-"
    waiting = f"{queue['waiting']}, {queue['oldest_wait_s']:.0f} s" if queue["waiting"] else "0"
    return f"{queue['running']}/{queue['slots']}", waiting


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
