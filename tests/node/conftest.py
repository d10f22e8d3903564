"""Tiny models, wheels with models, and real agents as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from services.node.store import Store
from tests.doubles.job_sender import NODE, Driver
from tests.doubles.package_index import Index, Wheelhouse, serve_index
from tests.ggufs import write_gguf


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Wheelhouse:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return Wheelhouse(folder)


@pytest.fixture
def index(wheelhouse: Wheelhouse) -> Iterator[Index]:
    with serve_index(wheelhouse.folder) as index:
        yield index


@pytest.fixture
def start_agent(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts an agent with the test's store and state; keywords are additional environment variables."""
    agents: list[subprocess.Popen[bytes]] = []

    def start(**environment: str) -> subprocess.Popen[bytes]:
        settings = {
            "CORRAL_REDIS_URL": redis_url,
            "CORRAL_NODE": NODE,
            "CORRAL_STORE": str(tmp_path / "store"),
            "CORRAL_STATE": str(tmp_path / "state"),
            "CORRAL_RUNNER": "fake",
            "CORRAL_DRAIN_S": "5",
            "CORRAL_REGISTRY_TOKEN": "not for workers",
        }
        with (tmp_path / "agent.log").open("ab") as log:
            command = [sys.executable, "-m", "services.node"]
            agents.append(subprocess.Popen(command, env=os.environ | settings | environment, stdout=log, stderr=log))
        return agents[-1]

    yield start
    for agent in agents:
        if agent.poll() is None:
            agent.send_signal(signal.SIGKILL)
        agent.wait()
    for process in psutil.process_iter():
        if _belongs_to(process, tmp_path):
            process.kill()


def _belongs_to(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("CORRAL_STATE", "").startswith(str(folder))
    except psutil.Error:
        return False


@pytest.fixture
def driver(redis: Redis, redis_url: str) -> Iterator[Driver]:
    driver = Driver(redis, redis_url)
    yield driver
    driver.close()
