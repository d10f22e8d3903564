"""`corral chaos`: kills workers of a running cluster, and shows how that affects clients."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from services.cli.console import out
from services.cli.errors import CommandError, RequestRefused
from services.cli.server import Server, connect

_TOKENS = 64
_CLIENTS = 4


@dataclass
class ClientResults:
    """What the clients experienced. Appended to from several threads.

    `waits` has the longest wait within each answer, in seconds.
    """

    waits: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def chaos(
    minutes: Annotated[float, typer.Option(min=0, help="How many minutes to run.")] = 1.0,
    every: Annotated[float, typer.Option(min=1, help="Seconds between kills.")] = 15.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Kill workers under load, and report how that affects a few clients. Exits with 1 if an answer failed."""
    server = connect()
    models = sorted({replica["model"] for replica in _ready(server)})
    if not models:
        raise CommandError("no model is loaded; there is nothing to kill")
    if not yes:
        question = (
            f"Kill a worker of {server.url} every {every:g} s for {minutes:g} minutes? Loaded models: {', '.join(models)}."
        )
        typer.confirm(question, abort=True)
    results, over = ClientResults(), threading.Event()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        for number in range(_CLIENTS):
            clients.submit(_ask, models[number % len(models)], results, over)
        try:
            kills = _kill(server, time.monotonic() + 60 * minutes, every)
        finally:
            over.set()
    _print(results, kills)


def _ready(server: Server) -> list[dict[str, Any]]:
    return [replica for replica in server.get("/registry/v1/replicas")["replicas"] if replica["state"] == "ready"]


def _kill(server: Server, until: float, every_s: float) -> int:
    kills = 0
    while time.monotonic() + every_s < until:
        time.sleep(every_s)
        if ready := _ready(server):
            victim = random.choice(ready)
            try:
                server.post(f"/registry/v1/replicas/{victim['id']}/kill", {})
            except RequestRefused as error:
                if error.status != 404:
                    raise
                continue  # the replica ended before we could kill it
            kills += 1
            out.print(f"killed the worker of {victim['model']} on {victim['node']} ({victim['id'][:12]})")
    return kills


def _ask(model: str, results: ClientResults, over: threading.Event) -> None:
    """Requests one answer after another. Opens its own connection, since the command's isn't shared between threads."""
    server = connect()
    options = {"num_predict": _TOKENS, "temperature": 0}
    while not over.is_set():
        longest, last = 0.0, time.monotonic()
        try:
            for _ in server.lines("/api/generate", {"model": model, "prompt": "Once upon a time", "options": options}):
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
        except CommandError as error:
            results.failures.append(str(error))
            over.wait(1)
        else:
            results.waits.append(longest)


def _print(results: ClientResults, kills: int) -> None:
    waits = sorted(results.waits)
    out.print(f"{kills} workers killed, {len(waits)} answers, {len(results.failures)} failed")
    if waits:
        out.print(
            f"longest wait within an answer: p50 {waits[len(waits) // 2]:.2f} s, p99 {waits[int(len(waits) * 0.99)]:.2f} s"
        )
    for failure in sorted(set(results.failures)):
        out.print(f"  {failure}")
    if results.failures:
        raise typer.Exit(1)
