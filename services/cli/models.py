"""`corral list`, `show`, `versions`, `rollback` and `rm`: the available models."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from services.cli.console import out, print_json, print_table
from services.cli.errors import CommandError, RequestRefused
from services.cli.quantities import count_text, size_text, time_text
from services.cli.server import Server, connect

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def model_names(incomplete: str) -> list[str]:
    """Model names for shell completion. Empty if no server answers."""
    try:
        models = connect().get("/api/tags")["models"]
    except CommandError:
        return []
    return [model["name"] for model in models if model["name"].startswith(incomplete)]


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.", autocompletion=model_names)]
ModelArguments = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Names of the models.", autocompletion=model_names)
]

_VERSIONS = "/registry/v1/models/versions"

#: How many lines of a system prompt or license `show` prints.
TEXT_LINES = 2


def list_models(
    prefix: Annotated[str, typer.Argument(help="List only names that start with this.")] = "",
    json: Json = False,
) -> None:
    """List models."""
    models = [model for model in connect().get("/api/tags")["models"] if model["name"].lower().startswith(prefix.lower())]
    if json:
        print_json({"models": models})
        return
    rows = [
        (model["name"], model["digest"][:12], size_text(model["size"]), time_text(datetime.fromisoformat(model["modified_at"])))
        for model in models
    ]
    print_table(("NAME", "ID", "SIZE", "MODIFIED"), rows)


def show(model: ModelArgument, json: Json = False) -> None:
    """Show details of a model."""
    server = connect()
    shown = server.post("/api/show", {"model": model})
    if json:
        print_json(shown)
        return
    for title, lines in [*_sections(shown), *_kept_versions(server, model)]:
        out.print(f"  {title}")
        for line in lines:
            out.print(f"    {line}".rstrip())
        out.print()


def versions(model: ModelArgument, json: Json = False) -> None:
    """List the kept versions of a model, newest first."""
    found = connect().get(_VERSIONS, name=model)
    if json:
        print_json(found)
        return
    rows = [
        (
            version["digest"][:12],
            "current" if version["current"] else "kept",
            size_text(version["size"]),
            time_text(datetime.fromisoformat(version["named_at"])),
            ", ".join(version["nodes"]) or "none",
            version["source"],
        )
        for version in found["versions"]
    ]
    print_table(("ID", "STATE", "SIZE", "SINCE", "NODES", "SOURCE"), rows)


def rollback(
    model: ModelArgument,
    digest: Annotated[str, typer.Argument(help="The start of a version's ID; default: the previous version.")] = "",
) -> None:
    """Point a model's name back to an earlier version."""
    done = connect().post("/registry/v1/models/rollback", {"model": model, "digest": digest})
    out.print(f"'{done['model']}' is version {done['digest'][:12]} again; it was {done['previous'][:12]}")


def remove(models: ModelArguments) -> None:
    """Remove models."""
    server = connect()
    for model in models:
        server.delete("/registry/v1/models", {"model": model})
        out.print(f"deleted '{model}'")


def _sections(shown: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The sections that aren't empty."""
    sections = [
        ("Model", _pairs(_facts(shown))),
        ("Capabilities", list(shown.get("capabilities") or [])),
        ("Parameters", _pairs(_parameters(shown.get("parameters") or ""))),
        ("System", _first_lines(shown.get("system") or "")),
        ("License", _first_lines(shown.get("license") or "")),
    ]
    return [(title, lines) for title, lines in sections if lines]


def _kept_versions(server: Server, model: str) -> list[tuple[str, list[str]]]:
    """The versions that `corral rollback` can go back to, with their sizes. Empty if the caller isn't allowed to list them."""
    try:
        found = server.get(_VERSIONS, name=model)["versions"]
    except RequestRefused as error:
        if error.status in (401, 403, 404, 503):
            return []
        raise
    kept = [version for version in found if not version["current"]]
    return (
        [("Kept versions", [f"{version['digest'][:12]}    {size_text(version['size'])}" for version in kept])] if kept else []
    )


def _facts(shown: dict[str, Any]) -> list[tuple[str, str]]:
    details, info = shown.get("details") or {}, shown.get("model_info") or {}
    architecture = info.get("general.architecture") or details.get("family", "")
    parameters = info.get("general.parameter_count")
    return [
        ("architecture", architecture),
        ("parameters", count_text(parameters) if parameters else details.get("parameter_size", "")),
        ("context length", str(info.get(f"{architecture}.context_length", ""))),
        ("embedding length", str(info.get(f"{architecture}.embedding_length", ""))),
        ("quantization", details.get("quantization_level", "")),
    ]


def _parameters(text: str) -> list[tuple[str, str]]:
    """Parses Ollama's parameters text, which has a name and a value on each line."""
    return [(name, value.strip()) for name, _, value in (line.strip().partition(" ") for line in text.splitlines()) if name]


def _pairs(pairs: list[tuple[str, str]]) -> list[str]:
    known = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in known), default=0)
    return [f"{name:{width}}    {value}" for name, value in known]


def _first_lines(text: str) -> list[str]:
    lines = text.strip().splitlines()
    return lines[:TEXT_LINES] + (["..."] if len(lines) > TEXT_LINES else [])
