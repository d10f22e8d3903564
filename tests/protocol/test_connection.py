"""Our Redis client: long blocking reads are not failures, and failures have one type."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from services.protocol.connection import connect
from services.protocol.errors import RedisRefused, Unavailable
from services.protocol.jobs import JobEvents, JobProgress
from services.protocol.queue import Queue
from services.protocol.records import Records
from services.protocol.replies import ReplyReader
from tests.conditions import eventually


@pytest.fixture
async def silent_url() -> AsyncIterator[str]:
    """The URL of a server that accepts connections and commands but never answers."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_a_read_longer_than_the_socket_timeout_is_not_a_failure(redis: Redis, redis_url: str) -> None:
    """The socket timeout detects a Redis that hangs, not one without news."""
    async with connect(f"{redis_url}?socket_timeout=1.5") as patient:
        control, replies, events = await asyncio.gather(
            Queue(patient).next_control("worker-1", timeout_s=1.8),
            ReplyReader(patient, "gateway-1").read(timeout_s=1.8),
            JobEvents(patient).read(b"0-0", timeout_s=1.8),
        )
    assert (control, replies, events) == (None, [], [])


async def test_a_redis_that_hangs_is_unavailable(silent_url: str) -> None:
    async with connect(f"{silent_url}?socket_timeout=0.1") as redis:
        with pytest.raises(Unavailable):
            await Queue(redis).demand()
        with pytest.raises(Unavailable):
            await Queue(redis).next_control("worker-1", timeout_s=5)


async def test_a_broken_connection_is_replaced(redis: Redis, redis_url: str) -> None:
    queue = Queue(redis)
    await queue.demand()
    async with connect(redis_url) as other:
        await other.client_kill_filter(_type="normal")

    async def answers() -> bool:
        try:
            return await queue.demand() == []
        except Unavailable:
            return False

    await eventually(answers, timeout_s=5)


async def test_a_refused_command_is_not_an_outage(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """For example, a key has the wrong type. The traceback is logged; the key's content is not."""
    await redis.set("corral:demand", "a secret")
    with pytest.raises(RedisRefused, match=r"^Redis refuses a command \(WRONGTYPE\)$"):
        await Queue(redis).demand()
    assert caplog.records[-1].exc_info
    await redis.set("corral:claims:worker-1", "a secret")
    with pytest.raises(RedisRefused):
        await Records(redis).held("worker-1")


async def test_a_wrong_password_is_not_an_outage(redis: Redis, redis_url: str) -> None:
    await redis.acl_setuser("someone", enabled=True, passwords="+right", keys=["*"], categories=["+@all"])
    async with connect(redis_url.replace("://", "://someone:wrong@")) as stranger:
        with pytest.raises(RedisRefused, match="password"):
            await Queue(stranger).demand()
        with pytest.raises(RedisRefused, match="password"):
            await Records(stranger).held("worker-1")


async def test_a_command_without_permission_is_not_an_outage(redis: Redis, redis_url: str) -> None:
    await redis.acl_setuser("reader", enabled=True, passwords="+right", keys=["*"], categories=["+@connection"])
    async with connect(redis_url.replace("://", "://reader:right@")) as stranger:
        with pytest.raises(RedisRefused, match="NOPERM|NoPermission|password"):
            await Records(stranger).held("worker-1")


async def test_a_read_only_redis_is_unavailable(redis: Redis) -> None:
    """As during a failover, which ends without our help."""
    await redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(Unavailable):
            await JobEvents(redis).publish(JobProgress("job", "pulling"))
    finally:
        await redis.replicaof("NO", "ONE")


async def test_a_blocked_read_is_unavailable_when_redis_becomes_a_replica(redis: Redis) -> None:
    """Redis aborts blocked commands then; loops that read continue after the failover."""
    read = asyncio.ensure_future(ReplyReader(redis, "gateway-1").read(timeout_s=30))

    async def waits() -> bool:
        return any(("b" in client["flags"], client["db"]) == (True, "0") for client in await redis.client_list())

    await eventually(waits)
    await redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(Unavailable, match="UNBLOCKED"):
            await read
    finally:
        await redis.replicaof("NO", "ONE")


async def test_a_redis_busy_with_a_script_is_unavailable(redis: Redis, redis_url: str) -> None:
    await redis.config_set("busy-reply-threshold", 10)
    async with connect(redis_url) as other:
        endless = asyncio.ensure_future(other.eval("while true do end", 0))
        try:

            async def is_busy() -> bool:
                try:
                    await JobEvents(redis).publish(JobProgress("job", "pulling"))
                except Unavailable as error:
                    return "BUSY" in error.message
                return False

            await eventually(is_busy)
        finally:
            await redis.script_kill()
            await asyncio.wait([endless])
            assert endless.exception()
            await redis.config_set("busy-reply-threshold", 5000)
