"""`corral ps` and `stop`: the models that are loaded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from services.cli.console import out, print_json, print_table
from services.cli.errors import CommandError, RequestRefused
from services.cli.models import Json, ModelArgument
from services.cli.quantities import size_text, time_text
from services.cli.server import connect


def ps(json: Json = False) -> None:
    """List the models that are loaded."""
    loaded = connect().get("/api/ps")
    if json:
        print_json(loaded)
    else:
        print_loaded(loaded["models"])


def print_loaded(models: list[dict[str, Any]]) -> None:
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


def _until(expires_at: datetime) -> str:
    return "Stopping..." if expires_at < datetime.now(UTC) else time_text(expires_at)
