"""Which inputs go into the next batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.worker.embedding.batches import Batches


def filled(requests: dict[str, list[int]], *, batch_tokens: int = 10, max_sequences: int = 4) -> Batches:
    """Batches with these requests, each given as the lengths of its inputs."""
    batches = Batches(batch_tokens=batch_tokens, max_sequences=max_sequences)
    for request, lengths in requests.items():
        batches.add(request, [[0] * length for length in lengths])
    return batches


def drain(batches: Batches) -> list[list[tuple[str, int]]]:
    taken = []
    while batches.has_work:
        taken.append([(given.request, given.index) for given in batches.next()])
    return taken


def test_inputs_of_several_requests_share_a_batch() -> None:
    assert drain(filled({"a": [2, 2], "b": [3], "c": [3]})) == [[("a", 0), ("b", 0), ("c", 0), ("a", 1)]]


def test_a_single_input_does_not_wait_for_a_thousand_others() -> None:
    batches = filled({"many": [5] * 1000})
    batches.next()
    batches.add("one", [[0] * 5])
    assert ("one", 0) in [(given.request, given.index) for given in batches.next()]


def test_an_input_longer_than_a_batch_gets_a_batch_alone() -> None:
    assert drain(filled({"a": [25, 1], "b": [2]})) == [[("a", 0)], [("b", 0), ("a", 1)]]


def test_an_input_that_did_not_fit_is_first_in_the_next_batch() -> None:
    batches = filled({"a": [6], "long": [9], "b": [1], "c": [2]}, max_sequences=2)
    assert drain(batches) == [[("a", 0), ("b", 0)], [("long", 0)], [("c", 0)]]


def test_a_dropped_request_leaves_the_others() -> None:
    batches = filled({"a": [5, 5, 5], "b": [5, 5, 5]})
    batches.next()
    batches.drop("a")
    assert drain(batches) == [[("b", 1), ("b", 2)]]
    batches.drop("gone already")


@given(
    requests=st.dictionaries(
        st.text(min_size=1, max_size=3), st.lists(st.integers(1, 15), min_size=1, max_size=30), max_size=8
    ),
    batch_tokens=st.integers(1, 20),
    max_sequences=st.integers(1, 6),
)
def test_every_input_is_taken_once_within_the_bounds(
    requests: dict[str, list[int]], batch_tokens: int, max_sequences: int
) -> None:
    taken = drain(filled(requests, batch_tokens=batch_tokens, max_sequences=max_sequences))
    for batch in taken:
        assert len(batch) <= max_sequences
        assert len(batch) == 1 or sum(requests[request][index] for request, index in batch) <= batch_tokens
    everything = [entry for batch in taken for entry in batch]
    assert sorted(everything) == sorted(
        (request, index) for request, lengths in requests.items() for index in range(len(lengths))
    )
    for request in requests:
        assert [index for of, index in everything if of == request] == sorted(
            index for of, index in everything if of == request
        )
