"""What the scheduler puts into a batch, and how sequences end. Without a model: the tests supply the tokens."""

from __future__ import annotations

import pytest

from services.protocol.messages import FinishReason
from services.worker.engine.sampling import Sampled
from services.worker.engine.scheduler import ScheduledBatch, Scheduler
from services.worker.engine.sequence import SequenceStatus
from services.worker.engine.slots import SlotPool
from tests.worker.engine.factories import make_sequence

END = 0


def make_scheduler(*, slots: int = 4, batch_tokens: int = 16) -> Scheduler:
    return Scheduler(SlotPool(slots, num_cells=1000), batch_tokens=batch_tokens, max_running=slots, end_tokens=frozenset({END}))


def shape(batch: ScheduledBatch) -> list[tuple[str, int, int, bool]]:
    return [(span.sequence.id, span.start, len(span.tokens), span.samples) for span in batch.spans]


def turn(scheduler: Scheduler, token: int = 7) -> ScheduledBatch:
    scheduler.admit()
    batch = scheduler.schedule(lambda prefilling, decoding: 4)
    scheduler.update(batch, [Sampled(token)] * sum(span.samples for span in batch.spans))
    return batch


def test_a_prompt_is_computed_and_sampled_then_decoded_token_by_token() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence([1, 2, 3], id="a"))
    assert shape(turn(scheduler)) == [("a", 0, 3, True)]
    assert shape(turn(scheduler)) == [("a", 3, 1, True)]
    assert shape(turn(scheduler)) == [("a", 4, 1, True)]


def test_a_long_prompt_is_split_into_chunks_and_only_the_last_samples() -> None:
    scheduler = make_scheduler(batch_tokens=4)
    scheduler.add(make_sequence(range(1, 11), id="a"))
    assert [shape(turn(scheduler)) for _ in range(3)] == [
        [("a", 0, 4, False)],
        [("a", 4, 4, False)],
        [("a", 8, 2, True)],
    ]


def test_running_answers_come_first_and_a_long_prompt_gets_a_limited_share() -> None:
    scheduler = make_scheduler(batch_tokens=16)
    scheduler.add(make_sequence([99], id="chat"))
    turn(scheduler)
    scheduler.add(make_sequence(range(1, 11), id="long"))
    assert shape(turn(scheduler)) == [("chat", 1, 1, True), ("long", 0, 4, False)]
    assert shape(turn(scheduler)) == [("chat", 2, 1, True), ("long", 4, 4, False)]
    assert shape(turn(scheduler)) == [("chat", 3, 1, True), ("long", 8, 2, True)]
    assert shape(turn(scheduler)) == [("chat", 4, 1, True), ("long", 10, 1, True)]


def test_several_prompts_share_the_budget_of_a_batch() -> None:
    scheduler = make_scheduler(batch_tokens=8)
    for name in "abc":
        scheduler.add(make_sequence([ord(name)] * 5, id=name))
    assert shape(turn(scheduler)) == [("a", 0, 5, True), ("b", 0, 3, False)]


def test_a_sequence_waits_for_a_slot_and_takes_the_first_that_is_free() -> None:
    scheduler = make_scheduler(slots=1)
    first, second = make_sequence([1], id="a", max_tokens=2), make_sequence([2], id="b")
    scheduler.add(first)
    scheduler.add(second)
    assert shape(turn(scheduler)) == [("a", 0, 1, True)]
    assert second.status is SequenceStatus.WAITING
    turn(scheduler)
    assert first.finish_reason is FinishReason.LENGTH
    assert scheduler.admit() == [second]
    assert shape(turn(scheduler)) == [("b", 0, 1, True)]


def test_the_end_token_ends_a_sequence_and_is_not_part_of_it() -> None:
    scheduler = make_scheduler()
    sequence = make_sequence([1, 2])
    scheduler.add(sequence)
    scheduler.admit()
    batch = scheduler.schedule(lambda prefilling, decoding: 4)
    (result,) = scheduler.update(batch, [Sampled(END)])
    assert (result.ends_text, result.finish_reason) == (True, FinishReason.STOP)
    assert sequence.tokens == [1, 2]
    assert not scheduler.has_work


def test_a_sequence_ends_when_its_context_is_full() -> None:
    scheduler = make_scheduler()
    sequence = make_sequence([1, 2], max_tokens=None, context_tokens=5)
    scheduler.add(sequence)
    while scheduler.has_work:
        turn(scheduler)
    assert len(sequence.tokens) == 5
    assert sequence.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("turns", [0, 1, 3], ids=["waiting", "in prefill", "decoding"])
def test_a_finished_sequence_leaves_the_batch_and_frees_its_slot(turns: int) -> None:
    scheduler = make_scheduler(slots=1, batch_tokens=4)
    sequence = make_sequence(range(1, 7), id="a", max_tokens=None)
    scheduler.add(sequence)
    for _ in range(turns):
        turn(scheduler)
    scheduler.finish(sequence, FinishReason.ABORT)
    assert not scheduler.has_work
    scheduler.add(make_sequence([9], id="b"))
    assert shape(turn(scheduler)) == [("b", 0, 1, True)]


def test_finishing_twice_keeps_the_first_reason() -> None:
    scheduler = make_scheduler()
    sequence = make_sequence([1])
    scheduler.add(sequence)
    turn(scheduler)
    scheduler.finish(sequence, FinishReason.STOP)
    scheduler.finish(sequence, FinishReason.ABORT)
    assert sequence.finish_reason is FinishReason.STOP


def test_the_next_sequence_reuses_an_aborted_prefill() -> None:
    scheduler = make_scheduler(slots=1, batch_tokens=4)
    sequence = make_sequence(range(1, 11), id="a")
    scheduler.add(sequence)
    turn(scheduler)
    scheduler.finish(sequence, FinishReason.ABORT)
    scheduler.add(make_sequence(range(1, 11), id="b"))
    (admitted,) = scheduler.admit()
    assert (admitted.slot, admitted.num_cached) == (0, 4)
    assert shape(turn(scheduler)) == [("b", 4, 4, False)]
