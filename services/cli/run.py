"""`corral run`: answers one prompt or, on a terminal without a prompt, starts a chat."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.answer import StreamedAnswer
from services.cli.chat import Chat
from services.cli.console import err, out
from services.cli.errors import CommandError, RequestRefused
from services.cli.models import ModelArgument
from services.cli.pull import pull_model
from services.cli.server import Server, connect

#: How the error begins if the server knows no source for a model.
_UNKNOWN = "pull model manifest: file does not exist"

#: Values that may follow `--think`; any other word belongs to the prompt.
THINK_LEVELS = ("true", "false", "low", "medium", "high", "max")


def run(
    model: ModelArgument,
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT...]", help="The prompt; without it, a chat starts.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; 0 always takes the most likely token.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling, for repeatable answers.")] = None,
    num_predict: Annotated[int | None, typer.Option(help="Maximum number of tokens to generate.")] = None,
    format: Annotated[
        str | None, typer.Option(metavar="json|FILE", help="Answer in JSON; FILE contains a JSON Schema.")
    ] = None,
    think: Annotated[
        str | None,
        typer.Option(
            metavar="[LEVEL]", help="Reasoning level: true (the default of --think), false, low, medium, high or max."
        ),
    ] = None,
    keepalive: Annotated[
        str | None, typer.Option(help="How long the model stays loaded when idle: 10m, 1h, -1 for ever.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print timings after each answer.")] = False,
) -> None:
    """Ask a model once, or chat with it.

    Text on stdin is put before the prompt.
    """
    options = {"temperature": temperature, "seed": seed, "num_predict": num_predict}
    streamed = StreamedAnswer(
        server=connect(),
        model=model,
        system=system,
        keep_alive=_keep_alive(keepalive),
        verbose=verbose,
        options={name: value for name, value in options.items() if value is not None},
        fields=_format(format) | _think(think),
    )
    text = " ".join([*_piped(), *(prompt or [])])
    if text:
        _shown(streamed.server, model)
        _answer(streamed, text)
    elif sys.stdin.isatty():
        Chat(streamed, capabilities=_shown(streamed.server, model).get("capabilities") or []).run()
    else:
        raise CommandError("no prompt: give one as an argument or on stdin, or use a terminal to chat")


def _answer(streamed: StreamedAnswer, text: str) -> None:
    answer = streamed.complete(text)
    if not answer.endswith("\n"):
        out.print()


def _piped() -> list[str]:
    text = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    return [text] if text else []


def _keep_alive(text: str | None) -> str | float | None:
    """A plain number is seconds. Anything else is left to the server, which parses Go durations."""
    try:
        return text if text is None else float(text)
    except ValueError:
        return text


def _format(asked: str | None) -> dict[str, Any]:
    if asked is None:
        return {}
    if asked == "json":
        return {"format": "json"}
    try:
        return {"format": json.loads(Path(asked).read_text())}
    except (OSError, ValueError) as error:
        raise CommandError(f"{asked} is not a JSON Schema: {error}") from error


def with_think_values(arguments: Sequence[str]) -> list[str]:
    """Adds a value to each bare `--think`, because typer has no options with an optional value."""
    complete: list[str] = []
    for argument, following in zip_longest(arguments, arguments[1:]):
        bare = argument == "--think" and following not in THINK_LEVELS and "--" not in complete
        complete.append("--think=true" if bare else argument)
    return complete


def _think(asked: str | None) -> dict[str, Any]:
    """Passes levels on unchanged; the server validates them."""
    return {} if asked is None else {"think": {"true": True, "false": False}.get(asked, asked)}


def _shown(server: Server, model: str) -> dict[str, Any]:
    """The model's details. Pulls the model first if it is missing."""
    try:
        shown: dict[str, Any] = server.post("/api/show", {"model": model})
    except RequestRefused as error:
        if error.status != 404:
            raise
        _pull_missing(server, model)
        shown = server.post("/api/show", {"model": model})
    return shown


def _pull_missing(server: Server, model: str) -> None:
    try:
        pull_model(server, model)
    except CommandError as error:
        if str(error).startswith(_UNKNOWN):
            raise CommandError(f"model '{model}' not found{str(error).removeprefix(_UNKNOWN)}") from None
        raise
    err.print()
