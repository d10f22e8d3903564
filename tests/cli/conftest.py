"""The command as a user runs it, with a scripted gateway."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from services.cli.__main__ import main
from tests.doubles.http_gateway import Answer, Gateway, serve


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Corral(Protocol):
    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Done: ...


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with serve() as gateway:
        gateway.answer("GET /registry/v1/replicas", Answer(body={"replicas": []}))
        yield gateway


@pytest.fixture
def environment(gateway: Gateway, tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose gateway is the scripted one and who has set nothing else."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CORRAL_", "OLLAMA_"))}
    state = {"CORRAL_HOME": str(tmp_path / "home"), "XDG_STATE_HOME": str(tmp_path / "state")}
    return inherited | state | {"CORRAL_HOST": gateway.url, "COLUMNS": "100"}


@pytest.fixture
def corral(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Corral:
    """Runs the command in this process; stdin is not a terminal."""

    def run(*arguments: str, stdin: str = "", **overrides: str) -> Done:
        with monkeypatch.context() as patch:
            for name in set(os.environ) - set(environment):
                patch.delenv(name)
            for name, value in {**environment, **overrides}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["corral", *arguments])
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            with pytest.raises(SystemExit) as exit_:
                main()
        captured = capsys.readouterr()
        code = exit_.value.code
        assert isinstance(code, int)
        return Done(code, captured.out, captured.err)

    return run
