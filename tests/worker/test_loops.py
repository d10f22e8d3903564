"""The worker's background loops with invalid input in Redis."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from services.process.loops import EXIT_CODE
from services.protocol.messages import Failed, Finished
from services.protocol.reports import WorkerState
from tests.doubles.gateway import VERSION, ScriptedGateway
from tests.worker.conftest import StartWorker


@pytest.mark.parametrize("key", ["workers", "idle:{version}", "inbox:{worker}", "gateways"])
async def test_a_key_of_the_wrong_type_ends_the_process(
    redis: Redis, gateway: ScriptedGateway, start_worker: StartWorker, key: str
) -> None:
    process = await start_worker()
    report = await gateway.worker(WorkerState.READY)
    name = f"corral:{key.format(version=VERSION, worker=report.worker)}"
    async with redis.pipeline() as pipe:
        pipe.delete(name)
        pipe.hset(name, "not", "what belongs here")
        await pipe.execute()
    assert await asyncio.wait_for(process.wait(), timeout=30) == EXIT_CODE


async def test_undecodable_messages_are_skipped_or_failed(
    redis: Redis, gateway: ScriptedGateway, start_worker: StartWorker
) -> None:
    """One in the inbox is skipped. An undecodable request fails, and the next one is served."""
    broken = await gateway.ask()
    await redis.hset(f"corral:request:{broken}", "payload", b"\x01\xff\xff")
    process = await start_worker()
    failed = await gateway.answer(broken)
    assert isinstance(failed, Failed)
    assert failed.code == "protocol_mismatch"
    report = await gateway.worker(WorkerState.READY)
    await redis.rpush(f"corral:inbox:{report.worker}", b"\x01\xff\xff", b"", b"\x09of another release")
    assert isinstance(await gateway.answer(await gateway.ask()), Finished)
    assert process.returncode is None
