"""`corral nodes`: the machines."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from services.cli.console import print_json, print_table
from services.cli.models import Json
from services.cli.quantities import binary_size_text, time_text
from services.cli.server import connect


def list_nodes(json: Json = False) -> None:
    """List the machines that run models."""
    found = connect().get("/registry/v1/nodes")
    if json:
        print_json(found)
    else:
        print_nodes(found["nodes"])


def print_nodes(nodes: list[dict[str, Any]]) -> None:
    """MEMORY and DISK: free of all."""
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
            time_text(datetime.fromisoformat(node["last_seen_at"])),
        )
        for node in nodes
    ]
    print_table(("NAME", "STATE", "CPUS", "MEMORY FREE", "DISK FREE", "DEVICES", "MODELS", "REPLICAS", "LAST SEEN"), rows)


def _free_of(free: int, total: int) -> str:
    return f"{binary_size_text(free)} of {binary_size_text(total)}"
