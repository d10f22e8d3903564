"""`corral ps` and `stop`: loaded models."""

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
    """List loaded models and, for admins, models that are loading."""
    server = connect()
    loaded = server.get("/api/ps")
    replicas = replicas_of(server)
    loading = loading_replicas(replicas)
    queues = queues_of(server)
    if json:
        print_json(loaded | {"loading": loading, "queues": list(queues.values())})
        return
    print_loaded(serving_models(loaded["models"], replicas), loading, queues=queues)


def queues_of(server: Server) -> dict[str, dict[str, Any]]:
    """Queues by version digest. Empty if the server has no queues, like Ollama."""
    try:
        return {queue["digest"]: queue for queue in server.get("/api/queue")["models"]}
    except RequestRefused as error:
        if error.status == 404:
            return {}
        raise


def loading_replicas(replicas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replicas that don't serve yet, and failed ones that will be retried."""
    return [row for row in replicas if row["state"] in ("pending", "fetching", "starting") or _retries(row)]


def serving_models(models: Sequence[dict[str, Any]], replicas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drops the models of GET /api/ps that are still loading, which the gateway lists there too."""
    serving = {replica["version"] for replica in replicas if replica["state"] in ("ready", "draining")}
    loads_only = {replica["version"] for replica in loading_replicas(replicas)} - serving
    return [model for model in models if model["digest"] not in loads_only]


def replicas_of(server: Server) -> list[dict[str, Any]]:
    """All replicas. Empty if the caller isn't allowed to list them."""
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
    """Unload a model as soon as it is idle."""
    try:
        connect().post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
    except RequestRefused as error:
        if error.status == 404:
            raise CommandError(f'couldn\'t find model "{model}" to stop') from None
        raise
    out.print(f"stopping '{model}'")


def _load(queue: dict[str, Any] | None) -> tuple[str, str]:
    """The RUNNING cell (running requests and slots) and the WAITING cell (waiting requests and the longest wait)."""
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


def _retries(replica: dict[str, Any]) -> bool:
    """Whether the replica failed and its next attempt is still to come."""
    due = replica.get("retry_at")
    return replica["state"] == "failed" and due is not None and datetime.fromisoformat(due) > datetime.now(UTC)


def _progress(replica: dict[str, Any]) -> str:
    if replica["state"] == "failed":
        wait_s = (datetime.fromisoformat(replica["retry_at"]) - datetime.now(UTC)).total_seconds()
        return f"Retry in {max(0, wait_s):.0f} s: {replica['reason']}"
    if replica["state"] == "starting":
        return f"Loading {replica['load_progress']:.0%}"
    return "Fetching" if replica["state"] == "fetching" else f"Waiting: {replica['reason']}"


def _until(expires_at: datetime) -> str:
    return "Stopping..." if expires_at < datetime.now(UTC) else time_text(expires_at)
