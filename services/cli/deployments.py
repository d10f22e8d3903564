"""`corral deploy`, `undeploy` and `deployments`: how models run, and which stay loaded.

The server validates the settings; this module only parses their command-line form.
"""

from __future__ import annotations

import json as jsonlib
from typing import Annotated, Any

import typer

from services.cli.console import out, print_json, print_table
from services.cli.errors import CommandError
from services.cli.models import Json, ModelArgument
from services.cli.rollout import replica_ids, wait_for_rollout
from services.cli.server import connect

_ROUTE = "/registry/v1/deployments"


def deploy(
    model: ModelArgument,
    replicas: Annotated[int, typer.Option(min=0, help="Replicas that stay loaded; 0: the model is loaded on demand.")] = 1,
    slots: Annotated[int | None, typer.Option(help="Requests that a replica answers at the same time.")] = None,
    context: Annotated[int | None, typer.Option(help="Context length of each slot, in tokens.")] = None,
    kv_tokens: Annotated[int | None, typer.Option(help="Size of the KV cache of all slots together, in tokens.")] = None,
    kv_type: Annotated[str | None, typer.Option(help="Data type of the KV cache: f16, q8_0, q4_0 ...")] = None,
    flash_attention: Annotated[str | None, typer.Option(help="Flash attention: auto, on or off.")] = None,
    gpu_layers: Annotated[int | None, typer.Option(help="Number of layers that run on accelerators; -1: all.")] = None,
    tensor_split: Annotated[str | None, typer.Option(help="Share of the model on each accelerator, for example 3,1.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="A LoRA adapter on the node, as FILE or FILE=SCALE; repeatable.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Worker image with another build of llama.cpp, for nodes with the Docker runtime.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any engine setting; repeatable.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the replicas are ready.")] = True,
) -> None:
    """Choose how a model runs, and keep it loaded. Anything omitted falls back to the platform's settings.

    Replicas with the old settings keep serving until the new ones are ready. If you stop the command, the rollout continues.
    """
    engine = {
        "slots": slots,
        "context_tokens": context,
        "kv_tokens": kv_tokens,
        "kv_type_k": kv_type,
        "kv_type_v": kv_type,
        "flash_attention": flash_attention,
        "gpu_layers": gpu_layers,
        "tensor_split": _numbers(tensor_split) if tensor_split else None,
        "lora": [_adapter(text) for text in lora] if lora else None,
        "image": image,
    }
    engine |= dict(_setting(text) for text in settings or [])
    given = {name: value for name, value in engine.items() if value is not None}
    server = connect()
    earlier = replica_ids(server) if wait else frozenset()
    done = server.put(f"{_ROUTE}/{model}", {"engine": given, "replicas": replicas})
    if wait and replicas:
        wait_for_rollout(server, done, earlier)
    out.print(f"deployed '{done['model']}': {_summary(done)}")


def undeploy(model: ModelArgument) -> None:
    """Undo `deploy`: use the platform's settings, and load the model on demand."""
    connect().delete(f"{_ROUTE}/{model}")
    out.print(f"'{model}' is loaded on demand, with the platform's settings")


def list_deployments(json: Json = False) -> None:
    """List models that are deployed or in use, with their settings."""
    found = connect().get(_ROUTE)
    if json:
        print_json(found)
        return
    rows = [
        (
            row["model"],
            row["version"][:12],
            f"{row['ready']}/{row['replicas']}",
            row["origin"].replace("_", " "),
            _settings(row),
        )
        for row in found["deployments"]
    ]
    reasons = [row["reason"] for row in found["deployments"]]
    if any(reasons):
        print_table(
            ("NAME", "ID", "READY", "ORIGIN", "SETTINGS", "REASON"),
            [(*row, reason) for row, reason in zip(rows, reasons, strict=True)],
        )
    else:
        print_table(("NAME", "ID", "READY", "ORIGIN", "SETTINGS"), rows)


def _summary(row: dict[str, Any]) -> str:
    kept = "on demand" if row["origin"] == "on_demand" else f"replicas={row['replicas']}"
    return f"{kept}, {_settings(row)}"


def _settings(row: dict[str, Any]) -> str:
    return " ".join(f"{name}={_value_text(value)}" for name, value in sorted(row["overrides"].items())) or "default settings"


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else jsonlib.dumps(value, separators=(",", ":"))


def _setting(text: str) -> tuple[str, Any]:
    """Parses NAME=VALUE. The value is read as JSON if possible, otherwise as text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandError(f"--set {text}: expected NAME=VALUE")
    try:
        return name, jsonlib.loads(value)
    except ValueError:
        return name, value


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise CommandError(f"--tensor-split {text}: expected numbers separated by commas, for example 3,1") from None


def _adapter(text: str) -> tuple[str, float]:
    file, equals, scale = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return file, float(scale)
    except ValueError:
        raise CommandError(f"--lora {text}: the scale after = must be a number") from None
