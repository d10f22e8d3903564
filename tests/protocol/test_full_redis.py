"""Redis with full memory or a full disk: new requests are refused, requests in flight finish, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.protocol.connection import connect
from services.protocol.errors import QueueMemoryFull, Unavailable
from services.protocol.gateways import Gateways
from services.protocol.jobs import JobEvents, JobProgress
from services.protocol.messages import Cancel, Frame, GenerateRequest, StepReply, Wake, new_id
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Queue
from services.protocol.replies import STREAM_BYTES, ReplyReader, ReplyWriter
from services.protocol.reports import NodeReport, NodeReports, WorkerReport, WorkerState
from services.protocol.routes import Routes, RoutesSnapshot
from tests.conditions import eventually
from tests.valkey import disk_valkey, full_memory

VERSION = "c" * 64
MEGABYTE = 1 << 20


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(redis)


async def enqueue(queue: Queue, *, size: int = 4) -> str:
    request = GenerateRequest(new_id(), VERSION, "gateway-1", "k1", TextPrompt("x" * size))
    await queue.enqueue(request, cost=1, limit=1000)
    return request.id


async def has_room(queue: Queue, admitted: list[str]) -> bool:
    try:
        admitted.append(await enqueue(queue, size=MEGABYTE))
    except QueueMemoryFull:
        return False
    return True


async def report(queue: Queue, worker: str = "worker-1") -> None:
    await queue.report(WorkerReport(worker, "replica", VERSION, "node", WorkerState.READY, slots=8, running=0), lease_ms=60_000)


def frame(request: str, *, text: str = "a") -> StepReply:
    return StepReply("worker-1", (Frame(request, 1, 0, (1,), text),))


async def test_requests_may_fill_the_memory_except_a_reserve(queue: Queue, redis: Redis) -> None:
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", used + 16 * MEGABYTE)
    waiting: list[str] = []
    try:
        while await has_room(queue, waiting):
            assert len(waiting) < 20
        assert len(waiting) > 4
        assert await redis.set("corral:anything", b"x" * 1000), "the rest of the memory is for others"
        for request in waiting:
            assert await queue.cancel(request) == "waiting"
        await eventually(lambda: has_room(queue, []))
    finally:
        await redis.config_set("maxmemory", 0)


async def test_requests_in_flight_finish_while_the_memory_is_full(queue: Queue, redis: Redis) -> None:
    gateways, reader, writer = Gateways(redis), ReplyReader(redis, "gateway-1"), ReplyWriter(redis)
    await gateways.renew("gateway-1")
    await report(queue)
    first, second = await enqueue(queue), await enqueue(queue)
    async with full_memory(redis):
        with pytest.raises(QueueMemoryFull, match="^the queue's memory is full$"):
            await enqueue(queue)
        await report(queue)
        claims = {claim.request.id: claim for claim in (await queue.claim(VERSION, "worker-1", capacity=2)).claims}
        assert claims.keys() == {first, second}
        assert await writer.publish({"gateway-1": frame(first), "gateway-2": frame(first)}) == {"gateway-2"}
        assert await reader.read(timeout_s=1) == [frame(first)]
        assert await queue.settle(first, claims[first].epoch, cost=5)
        assert await queue.cancel(second) == "claimed"
        assert [await queue.next_control("worker-1", timeout_s=1) for _ in range(2)] == [Wake(), Cancel(second)]
        assert await queue.requeue(second, claims[second].epoch)
        assert (await gateways.renew("gateway-1")).had_lease
        resumed = GenerateRequest(new_id(), VERSION, "gateway-1", "k1", TextPrompt("x"))
        await queue.enqueue(resumed, cost=1, limit=1, resumption=())
    assert await enqueue(queue)


async def test_the_control_plane_works_while_the_memory_is_full(redis: Redis) -> None:
    node = NodeReport("n1", "agent", 2, 1, 1, 1, 1, (), (), (), ())
    snapshot = RoutesSnapshot(3, 300, {}, {}, (), {})
    async with full_memory(redis):
        await NodeReports(redis).publish(node, lease_ms=60_000)
        assert await NodeReports(redis).read() == [node]
        await JobEvents(redis).publish(JobProgress("job", "pulling"))
        assert [event for _, event in await JobEvents(redis).read(b"0-0", timeout_s=1)] == [JobProgress("job", "pulling")]
        await Routes(redis).publish(snapshot)
        assert await Routes(redis).load() == snapshot
        await Queue(redis).crash("worker-1")
        await Gateways(redis).clean_up_dead("gateway-9")


async def test_the_reply_stream_of_a_gateway_that_does_not_read_is_bounded(redis: Redis) -> None:
    await Gateways(redis).renew("gateway-1", lease_ms=600_000, stream_ms=600_000)
    size = 4 * MEGABYTE
    for _ in range(2 * STREAM_BYTES // size):
        await ReplyWriter(redis).publish({"gateway-1": frame("r", text="x" * size)})
    used = await redis.memory_usage("corral:replies:gateway-1")
    assert used is not None
    assert used <= STREAM_BYTES + 4 * size


async def test_read_replies_are_trimmed_by_size(redis: Redis) -> None:
    await Gateways(redis).renew("gateway-1")
    reader, writer = ReplyReader(redis, "gateway-1"), ReplyWriter(redis)
    for _ in range(6):
        await writer.publish({"gateway-1": frame("r", text="x" * MEGABYTE)})
        await reader.read(timeout_s=1)
    used = await redis.memory_usage("corral:replies:gateway-1")
    assert used is not None
    assert used <= 3 * MEGABYTE


async def test_a_full_disk_is_unavailable_until_there_is_room(tmp_path: Path) -> None:
    async with disk_valkey(tmp_path) as server, connect(server.url) as redis:
        queue = Queue(redis)
        await report(queue)
        kept = await enqueue(queue)
        async with server.full_disk():
            with pytest.raises(Unavailable, match="^the queue's disk is full$"):
                await report(queue)
            with pytest.raises(Unavailable, match="^the queue's disk is full$"):
                await JobEvents(redis).publish(JobProgress("job", "pulling"))
        await eventually(lambda: accepts_reports(queue))
        claims = (await queue.claim(VERSION, "worker-1", capacity=1)).claims
        assert [claim.request.id for claim in claims] == [kept]


async def accepts_reports(queue: Queue) -> bool:
    try:
        await report(queue)
    except Unavailable:
        return False
    return True
