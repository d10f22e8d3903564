"""Priorities, and the estimates that a waiting client gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.protocol.waiting import (
    DEFAULT_RETRY_AFTER_S,
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    Priority,
    QueuePosition,
    place,
    retry_after_s,
)

RATES = st.none() | st.floats(0, 1e6)


def test_the_less_urgent_of_two_priorities() -> None:
    assert Priority.INTERACTIVE.at_most(Priority.NORMAL) is Priority.NORMAL
    assert Priority.BATCH.at_most(Priority.NORMAL) is Priority.BATCH
    assert [priority.band for priority in Priority] == [0, 1, 2]


@given(position=st.integers(0, 10**6), per_second=RATES)
def test_a_position_has_an_estimate_if_the_rate_is_known(position: int, per_second: float | None) -> None:
    found = place(position, per_second)
    assert found.position == position
    if position == 0:
        assert found.wait_s == 0
    elif per_second:
        assert found.wait_s == position / per_second
    else:
        assert found == QueuePosition(position, None)


@given(ahead=st.integers(0, 10**6), per_second=RATES)
def test_retry_after_is_within_its_limits(ahead: int, per_second: float | None) -> None:
    seconds = retry_after_s(ahead, per_second)
    assert isinstance(seconds, int)
    assert MIN_RETRY_AFTER_S <= seconds <= MAX_RETRY_AFTER_S


@pytest.mark.parametrize(
    ("ahead", "per_second", "seconds"), [(100, 10.0, 10), (101, 10.0, 11), (1, 1000.0, 1), (0, None, DEFAULT_RETRY_AFTER_S)]
)
def test_retry_after_is_when_the_requests_ahead_have_left(ahead: int, per_second: float | None, seconds: int) -> None:
    assert retry_after_s(ahead, per_second) == seconds
