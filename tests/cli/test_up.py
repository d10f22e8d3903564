"""`corral up` as a process: refusals to start, and what is left after it was killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.cli.embedded import processes
from services.cli.embedded.home import Home
from services.cli.embedded.ports import free_ports
from tests.conditions import eventually_sync


@pytest.fixture
def home() -> Iterator[Path]:
    """Not in pytest's folder, because pytest makes that unreadable for PostgreSQL's separate user."""
    with tempfile.TemporaryDirectory(prefix="corral-") as folder:
        yield Path(folder) / "home"


@pytest.fixture
def variables(home: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CORRAL_", "OLLAMA_"))}
    return inherited | {"CORRAL_HOME": str(home), "CORRAL_HOST": f"127.0.0.1:{free_ports(1)[0]}"}


def refused(variables: dict[str, str]) -> str:
    """The one-line error of a `corral up` that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "up", "--no-demo"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_an_address_in_use_is_refused(variables: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        message = refused(variables | {"CORRAL_HOST": f"127.0.0.1:{port}"})
    assert f"127.0.0.1:{port} is in use by " in message
    assert f"(pid {os.getpid()})" in message
    assert f"CORRAL_HOST=127.0.0.1:{port + 1}" in message


def test_a_home_in_use_is_refused(variables: dict[str, str], home: Path) -> None:
    folder = Home(home)
    folder.prepare()
    with folder.locked():
        assert f"is in use by another Corral (pid {os.getpid()})" in refused(variables)


def test_a_full_disk_is_refused(variables: dict[str, str], home: Path) -> None:
    assert f"{home} has " in refused(variables | {"CORRAL_MIN_FREE_BYTES": str(2**60)})
    assert not (home / "lock").exists()


class Up:
    """A running `corral up --no-demo` and its output."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", "--no-demo"],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout
        self.lines = self.process.stdout

    def until(self, words: str) -> str:
        """The output up to the line with `words`."""
        output = ""
        for line in self.lines:
            output += line
            if words in line:
                return output
        raise AssertionError(output)


@pytest.fixture
def up(variables: dict[str, str], home: Path) -> Iterator[Up]:
    up = Up(variables)
    yield up
    up.process.kill()
    up.process.wait()
    up.lines.close()
    eventually_sync(lambda: processes.marked(home) == set(), timeout_s=40)


def test_ctrl_c_before_it_is_ready_stops_everything(up: Up, home: Path) -> None:
    up.until("Valkey")
    up.process.send_signal(signal.SIGINT)
    assert "Corral has stopped" in up.until("Corral has stopped")
    assert up.process.wait(timeout=30) == 0
    assert processes.marked(home) == set()
    assert not (home / "lock").exists()


def test_a_platform_starts_after_another_was_killed(up: Up, variables: dict[str, str], home: Path) -> None:
    up.until("Ctrl-C stops Corral")
    passwords = (home / "secrets.json").read_text()
    parts = [psutil.Process(pid) for pid in processes.marked(home)]
    seen = "".join(" ".join(part.cmdline()) for part in parts)
    agent = next(part for part in parts if "services.node" in part.cmdline())
    agent.suspend()  # the agent would end without its supervisor, as the others do
    up.process.kill()
    up.process.wait()
    eventually_sync(lambda: processes.marked(home) == {agent.pid}, timeout_s=30)
    agent.resume()
    following = Up(variables)
    try:
        output = following.until("Ctrl-C stops Corral")
        following.process.send_signal(signal.SIGTERM)
        assert following.process.wait(timeout=60) == 0
    finally:
        following.process.kill()
        following.lines.close()
    assert processes.marked(home) == set()
    assert sorted(path.name for path in home.iterdir()) == [
        "logs",
        "models",
        "node",
        "postgres",
        "run",
        "secrets.json",
        "valkey",
    ]
    for secret in passwords.split('"')[3::4]:
        assert len(secret) > 20
        assert secret not in output + seen
        assert all(secret not in log.read_text() for log in (home / "logs").iterdir())
