"""The registry's background loops with invalid input in Redis."""

from __future__ import annotations

from redis.asyncio import Redis

from services.process.loops import EXIT_CODE
from services.protocol.routes import Routes
from services.registry.config import Settings
from tests.conditions import eventually
from tests.registry.conftest import RunRegistry
from tests.registry.process import start


async def test_job_events_of_the_wrong_type_end_the_process(migrated_url: str, redis_url: str, redis: Redis) -> None:
    await redis.set("corral:job-events", "no stream")
    process = start(CORRAL_DATABASE_URL=migrated_url, CORRAL_REDIS_URL=redis_url)
    await eventually(lambda: process.poll() is not None, timeout_s=60)
    _, stderr = process.communicate()
    assert process.returncode == EXIT_CODE
    assert "background loop failed, the process exits: loop=job events" in stderr


async def test_undecodable_messages_are_replaced_or_skipped(
    redis: Redis, settings: Settings, run_registry: RunRegistry
) -> None:
    """An event is skipped, and routes are published again."""
    for field, value in (("e", b"\x01\xff"), ("e", b""), ("x", b"y")):
        await redis.xadd("corral:job-events", {field: value})
    await redis.set("corral:routes", b"\x01\xff")

    async def is_readable() -> bool:
        data = await redis.get("corral:routes")
        return data != b"\x01\xff" and await Routes(redis).load() is not None

    async with run_registry(settings):
        await eventually(is_readable, timeout_s=20)
        await eventually(lambda: _is_empty(redis), timeout_s=20)


async def _is_empty(redis: Redis) -> bool:
    return await redis.xlen("corral:job-events") == 0
