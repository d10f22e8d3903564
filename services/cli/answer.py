"""An answer as it streams in, and the timings that come with its last line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from services.cli.console import err
from services.cli.quantities import duration_text
from services.cli.server import Server


@dataclass(frozen=True)
class Generation:
    """What every request of one `corral run` shares; `fields` are those of its body that were asked for."""

    server: Server
    model: str
    system: str | None
    keep_alive: str | float | None
    verbose: bool
    options: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    def load(self) -> None:
        """Returns once the model is loaded."""
        self.server.post("/api/generate", self._body() | {"stream": False})

    def complete(self, prompt: str) -> str:
        """Prints the answer to one prompt, and returns it."""
        body = self._body() | {"prompt": prompt} | ({"system": self.system} if self.system else {})
        return self._print("/api/generate", body)

    def chat(self, messages: list[dict[str, str]]) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self._print("/api/chat", self._body() | {"messages": [*system, *messages]})

    def _body(self) -> dict[str, Any]:
        keep_alive = {} if self.keep_alive is None else {"keep_alive": self.keep_alive}
        return {"model": self.model, "options": self.options} | self.fields | keep_alive

    def _print(self, path: str, body: dict[str, Any]) -> str:
        """Ctrl-C leaves the request, which frees its slot; what was said until then is returned."""
        voice = _Voice()
        lines = self.server.lines(path, body)
        try:
            for line in _waiting(lines, self.model):
                voice.say(line.get("message", line))
                if line["done"] and self.verbose:
                    _print_timings(line)
        except KeyboardInterrupt:
            raise Interrupted(voice.said) from None
        finally:
            lines.close()
        return voice.said


class _Voice:
    """Prints an answer as it comes: thoughts to stderr, so that stdout has the answer alone."""

    def __init__(self) -> None:
        self.said = ""
        self._thinks = False

    def say(self, part: dict[str, Any]) -> None:
        if thought := part.get("thinking"):
            err.print(thought, end="", style="dim")
            self._thinks = True
        if text := part.get("content") or part.get("response"):
            if self._thinks:
                err.print("\n")
                self._thinks = False
            self.said += text
            sys.stdout.write(text)
            sys.stdout.flush()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of an answer."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self.said = said


def _waiting(lines: Iterator[dict[str, Any]], model: str) -> Iterator[dict[str, Any]]:
    """A spinner until the first line: the model may have to be loaded."""
    with err.status(f"waiting for {model}", spinner="dots"):
        first = next(lines, None)
    if first:
        yield first
    yield from lines


def _print_timings(line: dict[str, Any]) -> None:
    """The last line's, as `ollama run --verbose` prints them."""
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
