"""The engine on FakeRunner, whose cache rejects tokens that do not continue a slot's contents."""

from __future__ import annotations

from collections.abc import Sequence as TokenIds

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.protocol.messages import FinishReason
from services.protocol.sampling import SamplingParams
from services.worker.engine.engine import Engine
from services.worker.engine.fake import FakeRunner
from services.worker.engine.runner import EngineDead, Span
from tests.worker.engine.factories import completion, ends_after, make_engine, make_sequence, run, solo, step


def test_eight_requests_share_one_batch() -> None:
    engine = make_engine()
    sequences = [make_sequence(f"prompt {number}", id=str(number)) for number in range(8)]
    for sequence in sequences:
        engine.add(sequence)
    step(engine)
    assert [sampled.sequence for sampled in step(engine)] == sequences


def test_the_end_token_stops_the_text() -> None:
    engine, sequence = make_engine(ends_after(3, "hello")), make_sequence("hello", max_tokens=None)
    engine.add(sequence)
    run(engine)
    assert len(completion(sequence)) == 3
    assert sequence.finish_reason is FinishReason.STOP


def test_a_second_turn_reuses_the_cache_of_the_first() -> None:
    engine, first = make_engine(), make_sequence("a long first turn")
    engine.add(first)
    run(engine)
    second = make_sequence([*first.tokens, *b" and more"])
    engine.add(second)
    run(engine)
    # The last sampled token was never computed.
    assert second.num_cached == len(first.tokens) - 1
    assert completion(second) == solo(bytes(first.tokens).decode() + " and more")


def test_idle_prefixes_are_evicted_for_running_sequences() -> None:
    engine = make_engine(FakeRunner(context_tokens=60, cells=60))
    for number in range(3):
        engine.add(make_sequence(f"{number} takes thirty-odd cells", max_tokens=5))
        run(engine)


def test_a_cache_smaller_than_reported_is_an_error() -> None:
    runner = FakeRunner(context_tokens=60, cells=60)
    engine = make_engine(runner)
    engine.add(make_sequence("more than ten tokens"))
    runner.num_cells = 10
    with pytest.raises(EngineDead):
        run(engine)


def test_sequences_that_do_not_fit_the_cache_together_all_finish() -> None:
    engine = make_engine(FakeRunner(num_slots=4, context_tokens=64, cells=64), batch_tokens=32)
    sequences = [make_sequence(f"{number}" * 10, id=str(number), max_tokens=40) for number in range(4)]
    for sequence in sequences:
        engine.add(sequence)
    run(engine)
    assert [completion(sequence) for sequence in sequences] == [solo(f"{n}" * 10, max_tokens=40) for n in range(4)]


def test_a_burst_with_one_new_prefix_computes_it_once() -> None:
    runner = Counting(num_slots=4)
    engine, prefix = make_engine(runner, batch_tokens=32), "a long prefix that all of them share, " * 5
    sequences = [make_sequence(f"{prefix}{number}", id=str(number)) for number in range(4)]
    for sequence in sequences:
        engine.add(sequence)
    run(engine)
    assert [sequence.num_cached for sequence in sequences] == [0, *[len(prefix)] * 3]
    assert runner.num_tokens == len(prefix) + 4 * 8  # for each, one token of its own and seven generated ones
    assert [completion(sequence) for sequence in sequences] == [solo(f"{prefix}{number}") for number in range(4)]


def test_a_burst_continues_if_the_sequence_that_computes_its_prefix_is_cancelled() -> None:
    engine, prefix = make_engine(batch_tokens=32), "a long prefix that all of them share, " * 5
    sequences = [make_sequence(f"{prefix}{number}", id=str(number)) for number in range(4)]
    for sequence in sequences:
        engine.add(sequence)
    step(engine)
    engine.finish(sequences[0], FinishReason.ABORT)
    run(engine)
    assert [sequence.num_cached for sequence in sequences] == [0, 32, len(prefix), len(prefix)]
    assert completion(sequences[1]) == solo(f"{prefix}1")


def test_more_slots_keep_prefixes_than_may_run() -> None:
    engine = make_engine(FakeRunner(num_slots=4, max_running=1))
    prompts = [letter * 40 for letter in "abcd"]
    for prompt in prompts:
        engine.add(make_sequence(prompt, id=prompt))
    assert len(engine.admit()) == 1
    run(engine)
    again = [make_sequence(prompt + "!", id=prompt) for prompt in prompts]
    for sequence in again:
        engine.add(sequence)
    run(engine)
    assert [sequence.num_cached for sequence in again] == [40] * 4


def test_a_prefix_is_shared_from_a_slot_in_use() -> None:
    engine = make_engine(FakeRunner(num_slots=2))
    first = make_sequence("the same beginning, one end", id="1", max_tokens=30)
    engine.add(first)
    step(engine)
    second = make_sequence("the same beginning, another", id="2", max_tokens=30)
    engine.add(second)
    run(engine)
    assert second.num_cached == len("the same beginning, ")
    assert completion(first) == solo("the same beginning, one end", max_tokens=30)
    assert completion(second) == solo("the same beginning, another", max_tokens=30)


def test_a_shifted_text_continues_past_its_context() -> None:
    engine = make_engine(FakeRunner(num_slots=1, context_tokens=32))
    sequence = make_sequence("keep, and drop this", max_tokens=60, context_tokens=32, keep_tokens=4)
    engine.add(sequence)
    run(engine)
    assert sequence.num_generated == 60
    assert sequence.finish_reason is FinishReason.LENGTH
    assert bytes(sequence.tokens[:4]) == b"keep"
    assert len(sequence.tokens) < 32


def test_a_shifted_text_ends_after_ten_contexts() -> None:
    engine = make_engine(FakeRunner(num_slots=1, context_tokens=32))
    sequence = make_sequence("endless", max_tokens=None, context_tokens=32, keep_tokens=0)
    engine.add(sequence)
    run(engine)
    assert sequence.num_generated == 320


def test_an_interrupted_batch_is_computed_again() -> None:
    runner = FakeRunner()
    engine, sequence = make_engine(runner), make_sequence("hello")
    engine.add(sequence)
    runner.interrupt()
    assert step(engine) == []
    run(engine)
    assert completion(sequence) == solo("hello")


class Cancelled(FakeRunner):
    """The client of `request` leaves while each batch is computed."""

    request = ""
    engine: Engine

    def decode(self, spans: TokenIds[Span]) -> NDArray[np.float32]:
        self.engine.interrupt(self.request)
        return super().decode(spans)


@pytest.mark.parametrize(
    ("request_id", "prompts", "is_interrupted"),
    [
        ("long", {"long": 32, "short": 5}, True),
        ("short", {"long": 32, "short": 5}, False),
        ("one", {"one": 20, "other": 20}, False),
        ("tiny", {"tiny": 16}, False),
        ("unknown", {"long": 32}, False),
    ],
)
def test_a_step_is_interrupted_for_the_request_that_it_is_mostly_computed_for(
    request_id: str, prompts: dict[str, int], is_interrupted: bool
) -> None:
    runner = Cancelled()
    runner.engine, runner.request = make_engine(runner), request_id
    for name, length in prompts.items():
        runner.engine.add(make_sequence(name[0] * length, id=name))
    assert bool(step(runner.engine)) is not is_interrupted


class Counting(FakeRunner):
    """Counts the computed tokens."""

    num_tokens = 0

    def decode(self, spans: TokenIds[Span]) -> NDArray[np.float32]:
        self.num_tokens += sum(len(span.tokens) for span in spans)
        return super().decode(spans)


sampling_params = st.sampled_from([SamplingParams(temperature=0), SamplingParams(temperature=1.0, seed=5, top_k=5)])


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 5),  # steps before it arrives
            st.text("ab", min_size=1, max_size=40),
            st.integers(1, 12),  # tokens wanted
            st.one_of(st.none(), st.integers(0, 10)),  # steps after which its client disconnects
            sampling_params,
        ),
        min_size=1,
        max_size=12,
    ),
    slots=st.integers(1, 4),
    cells=st.integers(64, 200),
)
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(
    arrivals: list[tuple[int, str, int, int | None, SamplingParams]], slots: int, cells: int
) -> None:
    engine = make_engine(FakeRunner(num_slots=slots, context_tokens=64, cells=cells), batch_tokens=16, prefill_tokens=5)
    running = []
    for number, (pause, prompt, wanted, patience, params) in enumerate(arrivals):
        for _ in range(pause):
            if engine.has_work:
                step(engine)
        sequence = make_sequence(prompt, id=str(number), max_tokens=wanted, sampling=params, context_tokens=64)
        engine.add(sequence)
        running.append(sequence)
        if patience is not None and patience < number:
            engine.finish(running[patience], FinishReason.ABORT)
    run(engine)
    for sequence, (_, prompt, wanted, _, params) in zip(running, arrivals, strict=True):
        expected = solo(prompt, max_tokens=wanted, sampling=params)
        if sequence.finish_reason is FinishReason.ABORT:
            assert completion(sequence) == expected[: sequence.num_generated]
        else:
            assert completion(sequence) == expected
