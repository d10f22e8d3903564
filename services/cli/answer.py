"""Prints an answer as it streams in, and the timings from its last line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from shutil import get_terminal_size
from typing import Any

from services.cli.console import err
from services.cli.quantities import duration_text
from services.cli.server import Server
from services.cli.word_wrap import WordWrap


@dataclass(frozen=True)
class StreamedAnswer:
    """Sends requests and prints their answers. Holds what all requests of one `corral run` share.

    `fields` are extra fields of the request body.
    """

    server: Server
    model: str
    system: str | None
    keep_alive: str | float | None
    verbose: bool
    options: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    def load(self) -> None:
        """Loads the model, and returns once it is loaded."""
        for _ in self.server.lines("/api/generate", self._body() | {"stream": False}):
            pass

    def complete(self, prompt: str) -> str:
        """Prints and returns the answer to one prompt."""
        body = self._body() | {"prompt": prompt} | ({"system": self.system} if self.system else {})
        return self._print("/api/generate", body)

    def chat(self, messages: list[dict[str, str]]) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self._print("/api/chat", self._body() | {"messages": [*system, *messages]})

    def _body(self) -> dict[str, Any]:
        keep_alive = {} if self.keep_alive is None else {"keep_alive": self.keep_alive}
        return {"model": self.model, "options": self.options} | self.fields | keep_alive

    def _print(self, path: str, body: dict[str, Any]) -> str:
        """Prints and returns an answer. On Ctrl-C, closes the request, which frees its slot, and raises Interrupted with the
        text so far."""
        printer = _AnswerPrinter()
        lines = self.server.lines(path, body, headers={"X-Queue-Updates": "true"})
        try:
            for line in _answer_lines(lines, self.model):
                printer.print(line.get("message", line))
                if line["done"] and self.verbose:
                    _print_timings(line)
        except KeyboardInterrupt:
            raise Interrupted(printer.said) from None
        finally:
            lines.close()
        return printer.said


class _AnswerPrinter:
    """Prints an answer as it arrives: reasoning to stderr, so that stdout has only the answer."""

    def __init__(self) -> None:
        self.said = ""
        self._thinks = False
        self._wrap = WordWrap(get_terminal_size().columns) if sys.stdout.isatty() else None

    def print(self, part: dict[str, Any]) -> None:
        if thought := part.get("thinking"):
            err.print(thought, end="", style="dim")
            self._thinks = True
        if text := part.get("content") or part.get("response"):
            if self._thinks:
                err.print("\n")
                self._thinks = False
            self.said += text
            sys.stdout.write(self._wrap.push(text) if self._wrap else text)
            sys.stdout.flush()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an answer. `said` is the text so far."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self.said = said


def _answer_lines(lines: Iterator[dict[str, Any]], model: str) -> Iterator[dict[str, Any]]:
    """Yields the answer's lines. Until the first one, a spinner shows the place in the queue."""
    first = None
    with err.status(f"waiting for {model}", spinner="dots") as status:
        for line in lines:
            if "queue_position" not in line:
                first = line
                break
            status.update(f"waiting for {model}: number {line['queue_position']} in the queue")
    if first:
        yield first
    yield from lines


def _print_timings(line: dict[str, Any]) -> None:
    """Prints the timings in the last line, in the format of `ollama run --verbose`."""
    rows = [
        ("total duration", duration_text(line.get("total_duration", 0))),
        ("load duration", duration_text(line.get("load_duration", 0))),
        *_phase("prompt eval", line.get("prompt_eval_count", 0), line.get("prompt_eval_duration", 0)),
        *_phase("eval", line.get("eval_count", 0), line.get("eval_duration", 0)),
    ]
    err.print()
    for name, value in rows:
        err.print(f"{name + ':':<22}{value}")


def _phase(name: str, tokens: int, nanoseconds: int) -> list[tuple[str, str]]:
    rate = tokens / (nanoseconds / 1e9) if nanoseconds else 0.0
    return [
        (f"{name} count", f"{tokens} token(s)"),
        (f"{name} duration", duration_text(nanoseconds)),
        (f"{name} rate", f"{rate:.2f} tokens/s"),
    ]
