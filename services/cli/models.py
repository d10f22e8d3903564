"""`corral list`, `show` and `rm`: the models that there are."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from services.cli.console import out, print_json, print_table
from services.cli.quantities import count_text, size_text, time_text
from services.cli.server import connect

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name.")]

#: Lines of a system prompt or a licence that `show` prints.
TEXT_LINES = 2


def list_models(
    prefix: Annotated[str, typer.Argument(help="Only names that begin so.")] = "",
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
    """Show what is known of a model."""
    shown = connect().post("/api/show", {"model": model})
    if json:
        print_json(shown)
        return
    for title, lines in _sections(shown):
        out.print(f"  {title}")
        for line in lines:
            out.print(f"    {line}".rstrip())
        out.print()


def remove(models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names of models.")]) -> None:
    """Remove models."""
    server = connect()
    for model in models:
        server.delete("/registry/v1/models", {"model": model})
        out.print(f"deleted '{model}'")


def _sections(shown: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Those that say something."""
    sections = [
        ("Model", _pairs(_facts(shown))),
        ("Capabilities", list(shown.get("capabilities") or [])),
        ("Parameters", _pairs(_parameters(shown.get("parameters") or ""))),
        ("System", _first_lines(shown.get("system") or "")),
        ("License", _first_lines(shown.get("license") or "")),
    ]
    return [(title, lines) for title, lines in sections if lines]


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
    """Of Ollama's text, a name and a value on each line."""
    return [(name, value.strip()) for name, _, value in (line.strip().partition(" ") for line in text.splitlines()) if name]


def _pairs(pairs: list[tuple[str, str]]) -> list[str]:
    known = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in known), default=0)
    return [f"{name:{width}}    {value}" for name, value in known]


def _first_lines(text: str) -> list[str]:
    lines = text.strip().splitlines()
    return lines[:TEXT_LINES] + (["..."] if len(lines) > TEXT_LINES else [])
