"""Reply streams from both ends: workers publish, and one gateway reads."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from services.protocol.connection import connect, read_stream
from services.protocol.errors import Unavailable
from services.protocol.gateways import Gateways, Renewal
from services.protocol.messages import Finished, FinishReason, Frame, Started, StepReply, Timings, Usage
from services.protocol.replies import TRIM_ENTRIES, ReplyReader, ReplyWriter
from tests.conditions import eventually

LEASE_MS = 600_000


def a_reply(number: int = 0, *, worker: str = "worker-1") -> StepReply:
    return StepReply(worker, (Frame("request-1", 1, number, (number,), f"token {number}"),))


@pytest.fixture
def writer(redis: Redis) -> ReplyWriter:
    return ReplyWriter(redis)


@pytest.fixture
async def reader(redis: Redis) -> ReplyReader:
    await keep(redis)
    return ReplyReader(redis, "gateway-1")


async def keep(redis: Redis, gateway: str = "gateway-1") -> Renewal:
    return await Gateways(redis).renew(gateway, stream_ms=LEASE_MS)


async def read(reader: ReplyReader, count: int) -> list[StepReply]:
    replies: list[StepReply] = []
    while len(replies) < count:
        more = await reader.read(timeout_s=5)
        assert more, f"only {len(replies)} of {count} came"
        replies += more
    return replies


async def test_every_kind_of_event_arrives_unchanged(writer: ReplyWriter, reader: ReplyReader) -> None:
    reply = StepReply(
        "worker-1",
        (
            Started("r1", 1, 0, 12, 4, (1, 2, 3)),
            Frame("r1", 1, 1, (5, 6), "né"),
            Finished("r1", 1, 2, (FinishReason.STOP,), Usage(12, 4, 2), Timings(10, 20)),
        ),
    )
    assert await writer.publish({"gateway-1": reply}) == set()
    assert await read(reader, 1) == [reply]


async def test_replies_of_a_writer_stay_in_order(writer: ReplyWriter, reader: ReplyReader) -> None:
    async def publish(worker: str) -> None:
        for number in range(100):
            await writer.publish({"gateway-1": a_reply(number, worker=worker)})

    workers = ["worker-1", "worker-2", "worker-3"]
    _, replies = await asyncio.gather(asyncio.gather(*map(publish, workers)), read(reader, 300))
    for worker in workers:
        assert [reply for reply in replies if reply.worker == worker] == [a_reply(n, worker=worker) for n in range(100)]


async def test_a_blocked_reader_gets_a_reply_at_once(writer: ReplyWriter, reader: ReplyReader) -> None:
    blocked = asyncio.create_task(reader.read(timeout_s=5))
    await writer.publish({"gateway-1": a_reply()})
    assert await asyncio.wait_for(blocked, 1) == [a_reply()]


async def test_a_read_without_new_replies_is_an_empty_list(reader: ReplyReader) -> None:
    assert await reader.read(timeout_s=0.01) == []
    assert await asyncio.wait_for(reader.read(timeout_s=0), 1) == []


async def test_one_publish_reaches_several_gateways(redis: Redis, writer: ReplyWriter, reader: ReplyReader) -> None:
    other = ReplyReader(redis, "gateway-2")
    await keep(redis, "gateway-2")
    await writer.publish({"gateway-1": a_reply(1), "gateway-2": a_reply(2)})
    assert await read(reader, 1) == [a_reply(1)]
    assert await read(other, 1) == [a_reply(2)]


async def test_missing_gateways_are_returned_and_no_entries_are_kept(
    redis: Redis, writer: ReplyWriter, reader: ReplyReader
) -> None:
    assert await writer.publish({"never-there": a_reply(), "gateway-1": a_reply()}) == {"never-there"}
    assert len(await read(reader, 1)) == 1
    await reader.close()
    assert await writer.publish({"gateway-1": a_reply()}) == {"gateway-1"}
    assert await redis.keys("corral:replies:*") == []


async def test_a_stream_that_is_not_renewed_expires(redis: Redis, writer: ReplyWriter) -> None:
    await Gateways(redis).renew("gateway-1", lease_ms=1, stream_ms=1)

    async def gone() -> bool:
        return await writer.publish({"gateway-1": a_reply()}) == {"gateway-1"}

    await eventually(gone, timeout_s=5)
    assert await redis.keys("corral:replies:*") == []


async def test_renewing_a_stream_loses_nothing(redis: Redis, writer: ReplyWriter, reader: ReplyReader) -> None:
    await writer.publish({"gateway-1": a_reply()})
    await redis.pexpire("corral:replies:gateway-1", 1000)
    assert await keep(redis) == Renewal(had_lease=True, had_stream=True)
    assert await redis.pttl("corral:replies:gateway-1") > 1000
    assert await read(reader, 1) == [a_reply()]


async def test_read_entries_are_trimmed(redis: Redis, writer: ReplyWriter, reader: ReplyReader) -> None:
    for start in range(0, 3000, 500):
        for number in range(start, start + 500):
            await writer.publish({"gateway-1": a_reply(number)})
        await read(reader, 500)
        # The reader trims only from time to time, and Redis trims whole nodes of 100 entries.
        assert await redis.xlen("corral:replies:gateway-1") <= TRIM_ENTRIES + 500


async def test_the_stream_is_created_again_after_redis_lost_its_data(
    redis: Redis, writer: ReplyWriter, reader: ReplyReader
) -> None:
    await writer.publish({"gateway-1": a_reply(1)})
    await read(reader, 1)
    await redis.flushdb()
    assert await writer.publish({"gateway-1": a_reply(2)}) == {"gateway-1"}
    assert await keep(redis) == Renewal(had_lease=False, had_stream=False)
    reader.restart()
    await writer.publish({"gateway-1": a_reply(3)})
    assert await read(reader, 1) == [a_reply(3)]


async def test_a_new_redis_with_an_earlier_clock_is_read_from_the_start(
    redis: Redis, writer: ReplyWriter, reader: ReplyReader
) -> None:
    """Stream ids are times. After an id of a server whose clock was ahead, no new entry would be read for that long."""
    await writer.publish({"gateway-1": a_reply(1)})
    [(_, fields)] = await read_stream(redis, "corral:replies:gateway-1", b"0-0", timeout_s=1)
    await redis.xadd("corral:replies:gateway-1", dict(fields.items()), id="99999999999999-0")
    await read(reader, 2)
    await redis.flushdb()
    assert await keep(redis) == Renewal(had_lease=False, had_stream=False)
    reader.restart()
    await writer.publish({"gateway-1": a_reply(2)})
    assert await read(reader, 1) == [a_reply(2)]


async def test_an_undecodable_entry_is_skipped(redis: Redis, writer: ReplyWriter, reader: ReplyReader) -> None:
    await writer.publish({"gateway-1": a_reply(1)})
    await redis.xadd("corral:replies:gateway-1", {"r": b"\x63of another release"})
    await writer.publish({"gateway-1": a_reply(2)})
    assert await read(reader, 2) == [a_reply(1), a_reply(2)]


async def test_both_ends_are_unavailable_without_redis(unused_tcp_port: int) -> None:
    async with connect(f"redis://127.0.0.1:{unused_tcp_port}/0") as redis:
        reader = ReplyReader(redis, "gateway-1")
        for call in (
            ReplyWriter(redis).publish({"gateway-1": a_reply()}),
            keep(redis),
            reader.read(timeout_s=1),
            reader.close(),
        ):
            with pytest.raises(Unavailable):
                await call
