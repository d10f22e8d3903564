"""The engine on FakeRunner, whose cache refuses anything that does not continue what a slot holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.protocol.messages import FinishReason
from services.protocol.sampling import SamplingParams
from services.worker.engine.fake import FakeRunner
from services.worker.engine.runner import EngineDead
from tests.worker.engine.factories import completion, ends_after, make_engine, make_sequence, run, solo, step


def test_eight_requests_share_one_batch() -> None:
    engine = make_engine()
    sequences = [make_sequence(f"prompt {number}", id=str(number)) for number in range(8)]
    for sequence in sequences:
        engine.add(sequence)
    step(engine)
    assert [sampled.sequence for sampled in step(engine)] == sequences


def test_a_model_that_ends_its_text() -> None:
    engine, sequence = make_engine(ends_after(3, "hello")), make_sequence("hello", max_tokens=None)
    engine.add(sequence)
    run(engine)
    assert len(completion(sequence)) == 3
    assert sequence.finish_reason is FinishReason.STOP


def test_a_second_turn_reuses_what_the_first_left_in_its_slot() -> None:
    engine, first = make_engine(), make_sequence("a long first turn")
    engine.add(first)
    run(engine)
    second = make_sequence([*first.tokens, *b" and more"])
    engine.add(second)
    run(engine)
    # The last sampled token was never computed.
    assert second.num_cached == len(first.tokens) - 1
    assert completion(second) == solo(bytes(first.tokens).decode() + " and more")


def test_a_full_cache_gives_up_idle_prefixes_for_running_sequences() -> None:
    engine = make_engine(FakeRunner(cells=60))
    for number in range(3):
        engine.add(make_sequence(f"{number} takes thirty-odd cells", max_tokens=5))
        run(engine)


def test_a_cache_that_is_too_small_for_what_runs_is_an_error() -> None:
    engine = make_engine(FakeRunner(cells=10))
    engine.add(make_sequence("more than ten tokens"))
    with pytest.raises(EngineDead):
        run(engine)


sampling_params = st.sampled_from([SamplingParams(temperature=0), SamplingParams(temperature=1.0, seed=5, top_k=5)])


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 5),  # steps before it arrives
            st.text("ab", min_size=1, max_size=40),
            st.integers(1, 12),  # tokens wanted
            st.one_of(st.none(), st.integers(0, 10)),  # steps after which its client leaves
            sampling_params,
        ),
        min_size=1,
        max_size=12,
    ),
    slots=st.integers(1, 4),
)
def test_what_a_request_says_does_not_depend_on_what_else_is_in_the_batch(
    arrivals: list[tuple[int, str, int, int | None, SamplingParams]], slots: int
) -> None:
    engine = make_engine(FakeRunner(num_slots=slots), batch_tokens=16, prefill_tokens=5)
    running = []
    for number, (pause, prompt, wanted, patience, params) in enumerate(arrivals):
        for _ in range(pause):
            if engine.has_work:
                step(engine)
        sequence = make_sequence(prompt, id=str(number), max_tokens=wanted, sampling=params)
        engine.add(sequence)
        running.append(sequence)
        if patience is not None and patience < number:
            engine.finish(running[patience], FinishReason.ABORT)
    run(engine)
    for sequence, (_, prompt, wanted, _, params) in zip(running, arrivals, strict=True):
        expected = solo(prompt, max_tokens=wanted, sampling=params)
        if sequence.finish_reason is FinishReason.ABORT:
            assert completion(sequence) == expected[: sequence.num_completion_tokens]
        else:
            assert completion(sequence) == expected
