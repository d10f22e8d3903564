"""`corral nodes` and `corral node`: the cluster's machines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

import typer

from services.cli.console import out, print_json, print_table
from services.cli.models import Json
from services.cli.quantities import binary_size_text, time_text
from services.cli.server import connect

NOW = timedelta(seconds=10)


app = typer.Typer(help="Remove a machine.", no_args_is_help=True)


@app.command("rm")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The node's name, as `corral nodes` lists it.")],
    force: Annotated[bool, typer.Option("--force", help="Remove it even if its agent still reports.")] = False,
) -> None:
    """Remove a machine that no longer exists, and the record of its files."""
    connect().delete(f"/registry/v1/nodes/{quote(name, safe='')}{'?force=true' if force else ''}")
    out.print(f"removed node '{name}'")


def list_nodes(json: Json = False) -> None:
    """List the machines that run models."""
    found = connect().get("/registry/v1/nodes")
    if json:
        print_json(found)
    else:
        print_nodes(found["nodes"])


def print_nodes(nodes: list[dict[str, Any]]) -> None:
    """Prints the table of nodes. The MEMORY FREE and DISK FREE columns show free and total."""
    rows = [
        (
            node["name"],
            node["state"],
            str(node["cpus"]),
            _free_of(node["memory_available"], node["memory_total"]),
            _free_of(node["disk_free"], node["disk_total"]),
            ", ".join(device["name"] for device in node["devices"]) or "-",
            str(node["models"]),
            str(node["replicas"]),
            _last_seen_text(datetime.fromisoformat(node["last_seen_at"])),
        )
        for node in nodes
    ]
    print_table(("NAME", "STATE", "CPUS", "MEMORY FREE", "DISK FREE", "DEVICES", "MODELS", "REPLICAS", "LAST SEEN"), rows)


def _last_seen_text(moment: datetime) -> str:
    """Shows a recent report as "now": nodes report every second, so its exact age means nothing."""
    return "now" if datetime.now(UTC) - moment < NOW else time_text(moment)


def _free_of(free: int, total: int) -> str:
    return f"{binary_size_text(free)} of {binary_size_text(total)}"
