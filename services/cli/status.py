"""`corral status`: whether the platform is ready, and what it consists of."""

from __future__ import annotations

import json as jsonlib
from typing import Any

import typer

from services.cli.config import load_settings
from services.cli.console import out, print_json, print_table
from services.cli.embedded.home import Home
from services.cli.errors import RequestRefused
from services.cli.models import Json
from services.cli.nodes import print_nodes
from services.cli.replicas import loading_replicas, print_loaded, queues_of, replicas_of, serving_models
from services.cli.server import Server, connect


def status(json: Json = False) -> None:
    """Show whether the platform is ready, and what it consists of. Exits with 1 if it isn't ready."""
    server = connect()
    code, checks = server.probe("/readyz")
    ready = code == 200
    replicas = replicas_of(server)
    found = {
        "url": server.url,
        "version": server.get("/api/version")["corral"],
        "ready": ready,
        "checks": checks,
        "models": serving_models(server.get("/api/ps")["models"], replicas),
        "loading": loading_replicas(replicas),
        "queues": queues_of(server),
        "nodes": _nodes(server),
        "parts": _local_processes(),
    }
    if json:
        print_json(found)
    else:
        _print(found)
    if not ready:
        raise typer.Exit(1)


def _print(found: dict[str, Any]) -> None:
    out.print(f"Corral {found['version']} at {found['url']} is {'ready' if found['ready'] else 'not ready'}")
    if not found["ready"]:
        out.print(jsonlib.dumps(found["checks"]))
    if found["nodes"]:
        out.print()
        print_nodes(found["nodes"])
    if found["models"] or found["loading"]:
        out.print()
        print_loaded(found["models"], found["loading"], queues=found["queues"])
    if found["parts"]:
        out.print()
        print_table(
            ("PART", "PID", "PORT"),
            [(name, str(process["pid"]), str(process["port"] or "-")) for name, process in found["parts"].items()],
        )


def _nodes(server: Server) -> list[dict[str, Any]] | None:
    """All nodes. None if the caller isn't allowed to list them."""
    try:
        nodes: list[dict[str, Any]] = server.get("/registry/v1/nodes")["nodes"]
    except RequestRefused as error:
        if error.status in (401, 403, 503):
            return None
        raise
    return nodes


def _local_processes() -> dict[str, Any] | None:
    """Pid and port of each process of the platform in this user's home folder; None if none is running."""
    home = Home(load_settings().home.expanduser().absolute())
    if home.holder() is None:
        return None
    try:
        processes: dict[str, Any] = jsonlib.loads(home.processes_file.read_text())
    except FileNotFoundError:
        return None
    return processes
