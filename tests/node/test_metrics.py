"""The metrics of a real agent and of the worker that it starts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from services.protocol.jobs import JobSucceeded, Pull
from services.protocol.messages import new_id
from tests.conditions import eventually
from tests.doubles.job_sender import NAME, Driver, start_job
from tests.scraping import Scrape, scrape

StartAgent = Callable[..., "subprocess.Popen[bytes]"]


async def scraped(driver: Driver) -> Scrape:
    found = await scrape((await driver.reports()).metrics)
    found.require_documented()
    return found


async def test_metrics_of_the_machine_and_its_store(start_agent: StartAgent, driver: Driver, tiny_gguf: Path) -> None:
    start_agent(CORRAL_METRICS_PORT="auto")
    report = await driver.reports()
    found = await scraped(driver)
    assert found.sum("corral_node_cpu_cores") == report.cpus
    assert found.sum("corral_node_memory_bytes") == report.memory_total
    assert 0 < found.sum("corral_node_memory_available_bytes") < report.memory_total
    assert found.sum("corral_node_disk_bytes") == report.disk_total
    assert 0 < found.sum("corral_node_disk_free_bytes") <= report.disk_total
    assert found.sum("corral_node_cpu_busy_seconds_total") > 0
    assert found.sum("corral_node_store_blobs") == 0

    pulled = await driver.pull(str(tiny_gguf))
    assert (await driver.refusal(Pull(new_id(), "/nowhere.gguf", NAME))).code == "not_found"
    found = await scraped(driver)
    size = sum(layer.size for layer in (pulled.config, *pulled.layers))
    assert found.sum("corral_node_pulls_total", outcome="succeeded") == 1
    assert found.sum("corral_node_pulls_total", outcome="failed") == 1
    assert found.sum("corral_node_pulled_bytes_total") == size
    assert found.sum("corral_node_pull_seconds_count") == 1
    assert found.sum("corral_node_store_blobs") == 2
    assert found.sum("corral_node_store_bytes") == size


async def test_each_worker_gets_a_separate_port(start_agent: StartAgent, driver: Driver, tiny_gguf: Path) -> None:
    start_agent(CORRAL_METRICS_PORT="auto")
    await driver.reports()
    pulled = await driver.pull(str(tiny_gguf))
    for replica in ("r1", "r2"):
        assert isinstance(await driver.do(start_job(pulled, replica)), JobSucceeded)
    addresses = [(await driver.worker(replica)).metrics for replica in ("r1", "r2")]
    assert len(set(addresses)) == 2
    for address in addresses:
        assert (await scrape(address)).sum("corral_worker_slots") == 2

    async def both_run() -> bool:
        return (await scraped(driver)).sum("corral_node_workers") == 2

    await eventually(both_run)


async def test_without_a_port_no_metrics_are_served(start_agent: StartAgent, driver: Driver, tiny_gguf: Path) -> None:
    start_agent()
    assert (await driver.reports()).metrics == ""
    pulled = await driver.pull(str(tiny_gguf))
    assert isinstance(await driver.do(start_job(pulled)), JobSucceeded)
    assert (await driver.worker("r1")).metrics == ""
