"""A worker's metrics, scraped from its process."""

from __future__ import annotations

import asyncio

from services.protocol.messages import Finished, FinishReason
from services.protocol.prompts import TextPrompt
from services.protocol.reports import WorkerReport, WorkerState
from tests.doubles.gateway import ScriptedGateway
from tests.scraping import Scrape, scrape
from tests.worker.conftest import StartWorker


async def serving(gateway: ScriptedGateway, start_worker: StartWorker, **settings: object) -> WorkerReport:
    await start_worker(metrics_port="auto", **settings)
    return await gateway.worker(WorkerState.READY)


async def scraped(report: WorkerReport) -> Scrape:
    found = await scrape(report.metrics)
    found.require_documented()
    return found


async def test_steps_tokens_and_finish_reasons(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    report = await serving(gateway, start_worker, slots=4, context_tokens=256)
    requests = [await gateway.ask(TextPrompt(f"{word} and so on"), max_tokens=5) for word in ("one", "two", "three")]
    ended = [await gateway.answer(request) for request in requests]
    assert all(isinstance(event, Finished) for event in ended)
    found = await scraped(report)
    usages = [event.usage for event in ended if isinstance(event, Finished)]
    assert found.sum("corral_worker_claims_total", resumed="no") == 3
    assert found.sum("corral_worker_ends_total", reason="length") == 3
    prefill = sum(usage.prompt_tokens - usage.cached_tokens for usage in usages)
    assert found.sum("corral_worker_computed_tokens_total", phase="prefill") == prefill
    # A prompt's last token gives the answer's first, and the answer's last token is not computed.
    assert found.sum("corral_worker_computed_tokens_total", phase="decode") == 3 * 4
    steps = found.sum("corral_worker_step_seconds_count")
    assert steps >= 5
    assert found.sum("corral_worker_batch_tokens_count") == found.sum("corral_worker_batch_sequences_count") == steps
    assert found.sum("corral_worker_batch_tokens_sum") == prefill + 12
    assert found.sum("corral_worker_slots") == 4
    assert found.sum("corral_worker_requests") == 0
    assert found.sum("corral_worker_memory_bytes") > 10_000_000


async def test_busy_slots_and_used_cells(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    report = await serving(gateway, start_worker, slots=2, context_tokens=64, fake_step_s=0.02)
    request = await gateway.ask(max_tokens=None)
    await gateway.until(lambda: len(gateway.frames(request)) > 3)
    busy = await scraped(report)
    assert busy.sum("corral_worker_busy_slots") == 1
    assert busy.sum("corral_worker_requests") == 1
    assert busy.sum("corral_worker_kv_tokens") == 128
    assert busy.sum("corral_worker_kv_used_tokens", state="running") > 3
    assert busy.sum("corral_worker_kv_used_tokens", state="kept") == 0
    await gateway.queue.cancel(request)
    ended = await gateway.answer(request)
    assert isinstance(ended, Finished)
    assert ended.reasons == (FinishReason.ABORT,)
    idle = await scraped(report)
    assert idle.sum("corral_worker_busy_slots") == 0
    assert idle.sum("corral_worker_kv_used_tokens", state="running") == 0
    assert idle.sum("corral_worker_kv_used_tokens", state="kept") > 3
    assert idle.sum("corral_worker_ends_total", reason="abort") == 1


async def test_an_embedder_reports_no_slots_and_no_cells(gateway: ScriptedGateway, start_worker: StartWorker) -> None:
    report = await serving(gateway, start_worker, pooling="mean")
    found = await scraped(report)
    assert not found.all("corral_worker_busy_slots")
    assert not found.all("corral_worker_kv_tokens")


async def test_a_port_in_use_is_a_one_line_error(start_worker: StartWorker) -> None:
    listening = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    process = await start_worker(metrics_port=port)
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    listening.close()
    assert process.returncode == 1
    assert errors.decode() == (
        f"corral worker: cannot serve metrics on 127.0.0.1:{port}: Address already in use; set CORRAL_METRICS_PORT\n"
    )
