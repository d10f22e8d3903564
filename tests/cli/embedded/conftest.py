"""A home folder, and parts that are small real processes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.cli.embedded.home import Home
from services.cli.embedded.managed_process import ManagedProcess
from services.cli.embedded.processes import MARK


@pytest.fixture
def home() -> Iterator[Home]:
    """Not in pytest's folder, because pytest makes that unreadable for PostgreSQL's separate user."""
    with tempfile.TemporaryDirectory(prefix="corral-") as folder:
        home = Home(Path(folder) / "home")
        home.prepare()
        yield home


MakeProcess = Callable[..., ManagedProcess]


@pytest.fixture
def make_process(home: Home) -> MakeProcess:
    """A part that runs a piece of Python code. In it, `home` is the folder's path and `READY` marks the part as ready."""

    def make(name: str, code: str, *, grace_s: float = 10) -> ManagedProcess:
        mark = home.path / f"{name}.started"

        async def started(_pid: int) -> bool:
            return mark.exists()

        start = "import os, pathlib, signal, subprocess, sys, time\n" + f"home = pathlib.Path({str(home.path)!r})\n"
        return ManagedProcess(
            name=name,
            command=(sys.executable, "-c", start + code.replace("READY", f"pathlib.Path({str(mark)!r}).touch()")),
            environment={"PATH": os.environ["PATH"], MARK: str(home.path)},
            ready=started,
            grace_s=grace_s,
        )

    return make
