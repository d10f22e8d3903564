"""A real agent with workers in containers, real llama.cpp and a real Valkey."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.node.__main__ import main
from services.protocol.engine import EngineSettings
from services.protocol.jobs import JobSucceeded, Start, Stop
from services.protocol.messages import new_id
from tests.conditions import eventually
from tests.doubles.job_sender import NODE, Driver
from tests.scraping import scrape

StartAgent = Callable[..., "subprocess.Popen[bytes]"]

VERSION = "f" * 64
MIB = 1024**2


def containers(engine: Any) -> list[dict[str, Any]]:
    found = engine.containers(all=True, filters={"label": f"ai.corral.node={NODE}"})
    return [engine.inspect_container(entry["Id"]) for entry in found]


@pytest.fixture
def settings(engine: Any, image: str) -> Iterator[dict[str, str]]:
    """Workers share the host's network, because Valkey listens on its loopback address."""
    yield {
        "CORRAL_RUNTIME": "docker",
        "CORRAL_IMPORT_PATHS": "/",
        "CORRAL_WORKER_IMAGE": image.replace("-cpu", "-{backend}"),
        "CORRAL_WORKER_NETWORK": "host",
    }
    for container in containers(engine):
        engine.remove_container(container["Id"], force=True, v=True)


@pytest.mark.docker
async def test_a_model_from_pull_to_delete(
    start_agent: StartAgent, driver: Driver, engine: Any, settings: dict[str, str], tiny_gguf: Path
) -> None:
    agent = start_agent(**settings, CORRAL_RUNNER="llama", CORRAL_METRICS_PORT="auto")
    report = await driver.reports()
    assert (report.cpus, report.memory_total) == (engine.info()["NCPU"], engine.info()["MemTotal"])
    pulled = await driver.pull(str(tiny_gguf))
    start = Start(new_id(), "r1", VERSION, pulled.layers[0].digest, EngineSettings(slots=2), 256 * MIB)
    assert isinstance(await driver.do(start), JobSucceeded)
    worker = await driver.worker("r1")
    assert (worker.node, worker.slots, worker.context_tokens) == (NODE, 2, 512)
    assert (await scrape(worker.metrics)).sum("corral_worker_slots") == 2
    assert (await scrape(report.metrics)).sum("corral_node_memory_bytes") == engine.info()["MemTotal"]
    (found,) = containers(engine)
    assert found["HostConfig"]["Memory"] == (320 + 256) * MIB
    variables = "\n".join(found["Config"]["Env"])
    assert "not for workers" not in variables, "no secret but what the worker needs"
    assert os.environ["PATH"] not in variables, "nothing of the agent's own machine"

    def health() -> str:
        state: str = containers(engine)[0]["State"]["Health"]["Status"]
        return state

    await eventually(lambda: health() == "healthy", timeout_s=30, what="a healthy container")

    os.kill(found["State"]["Pid"], signal.SIGKILL)
    await eventually(lambda: _gone(driver), timeout_s=1, what="the end of the killed worker's lease")

    async def ended() -> bool:
        reported = await driver.report()
        return reported is not None and [(each.replica, each.exit_code) for each in reported.processes] == [("r1", -9)]

    await eventually(ended, what="the report of its end")
    assert isinstance(await driver.do(Start(new_id(), "r2", VERSION, start.model, start.engine)), JobSucceeded)
    await driver.worker("r2")
    assert isinstance(await driver.do(Stop(new_id(), "r2")), JobSucceeded)
    assert await driver.workers() == []

    agent.send_signal(signal.SIGTERM)
    assert agent.wait(20) == 0
    assert containers(engine) == []


async def _gone(driver: Driver) -> bool:
    return await driver.workers() == []


@pytest.mark.docker
async def test_workers_survive_a_crash_of_the_agent(
    start_agent: StartAgent, driver: Driver, engine: Any, settings: dict[str, str], tiny_gguf: Path
) -> None:
    agent = start_agent(**settings)
    pulled = await driver.pull(str(tiny_gguf))
    start = Start(new_id(), "r1", VERSION, pulled.layers[0].digest, EngineSettings(slots=2))
    assert isinstance(await driver.do(start), JobSucceeded)
    worker = await driver.worker("r1")
    agent.send_signal(signal.SIGKILL)
    agent.wait()

    agent = start_agent(**settings)
    again = Start(new_id(), "r1", VERSION, start.model, start.engine)
    assert isinstance(await driver.do(again), JobSucceeded)
    assert len(containers(engine)) == 1
    assert [each.worker for each in await driver.workers()] == [worker.worker]
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(20) == 0
    assert containers(engine) == []


@pytest.mark.docker
async def test_a_missing_image_fails_the_start_in_one_sentence(
    start_agent: StartAgent, driver: Driver, engine: Any, settings: dict[str, str], tiny_gguf: Path
) -> None:
    start_agent(**{**settings, "CORRAL_WORKER_IMAGE": "corral-worker:nowhere-{backend}"})
    pulled = await driver.pull(str(tiny_gguf))
    start = Start(new_id(), "r1", VERSION, pulled.layers[0].digest, EngineSettings())
    refusal = await driver.refusal(start)
    missing = "there is no image corral-worker:nowhere-cpu on this node: build it here, pull it or load it"
    assert (refusal.code, refusal.message) == ("model_load_failed", missing)
    assert containers(engine) == []


def test_an_agent_without_an_engine_refuses_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CORRAL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CORRAL_RUNTIME", "docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nowhere.sock")
    assert main() == 1
    assert capsys.readouterr().err == "corral node: the Docker engine does not answer: No such file or directory\n"
