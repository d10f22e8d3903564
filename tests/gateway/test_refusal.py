"""Who is let in, by how long it would have to wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.limits import refusal
from services.protocol.waiting import MAX_RETRY_S, Place, Terms

PLACES = st.builds(Place, st.integers(0, 10**4), st.none() | st.floats(0, 10**5))


@given(place=PLACES)
def test_one_that_waits_for_ever_is_let_in(place: Place) -> None:
    assert refusal(place, Terms(timeout_ms=None)) is None


@given(position=st.integers(0, 10**4), timeout_ms=st.integers(1, 10**6))
def test_one_is_let_in_where_nobody_knows_how_long_it_will_wait(position: int, timeout_ms: int) -> None:
    assert refusal(Place(position, None), Terms(timeout_ms=timeout_ms)) is None


@given(place=PLACES, timeout_ms=st.integers(1, 10**6))
def test_whoever_waits_less_is_let_in_where_one_is_that_waits_longer(place: Place, timeout_ms: int) -> None:
    if refusal(place, Terms(timeout_ms=timeout_ms)) is None:
        assert refusal(Place(0, 0.0), Terms(timeout_ms=timeout_ms)) is None
        assert refusal(place, Terms(timeout_ms=2 * timeout_ms)) is None


def test_a_refused_one_is_told_when_to_come_back() -> None:
    assert refusal(Place(10, 4.0), Terms(timeout_ms=8000)) is None
    early = refusal(Place(10, 4.1), Terms(timeout_ms=8000))
    assert early is not None
    assert early.retry_after_s == 5
    late = refusal(Place(10, 1e6), Terms(timeout_ms=8000))
    assert late is not None
    assert late.retry_after_s == MAX_RETRY_S
