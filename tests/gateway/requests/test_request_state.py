"""RequestState allows the transitions of its diagram and no others."""

from __future__ import annotations

import itertools

import pytest

from services.gateway.requests.pending_request import PendingRequest
from services.gateway.requests.request_state import RequestState
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import TextPrompt

DRAWN = {
    ("admitting", "active"),
    ("admitting", "abandoned"),
    ("admitting", "ended"),
    ("active", "abandoned"),
    ("active", "ended"),
    ("abandoned", "cancelled"),
    ("abandoned", "ended"),
    ("cancelled", "abandoned"),
    ("cancelled", "ended"),
}


def request_in(state: RequestState) -> PendingRequest:
    pending = PendingRequest(GenerateRequest("r", "v", "g", "k", TextPrompt("")))
    paths = {
        "admitting": [],
        "active": ["active"],
        "abandoned": ["abandoned"],
        "cancelled": ["abandoned", "cancelled"],
        "ended": ["ended"],
    }
    for step in paths[state.value]:
        pending.enter(RequestState(step))
    return pending


@pytest.mark.parametrize(("before", "after"), list(itertools.product(RequestState, RequestState)))
def test_only_the_diagrams_transitions_are_allowed(before: RequestState, after: RequestState) -> None:
    pending = request_in(before)
    if (before.value, after.value) in DRAWN:
        pending.enter(after)
        assert pending.state is after
    else:
        with pytest.raises(AssertionError, match=f"{before.value} → {after.value}"):
            pending.enter(after)
        assert pending.state is before


def test_a_request_is_awaited_until_it_is_abandoned_or_ends() -> None:
    assert [state for state in RequestState if state.is_awaited] == [RequestState.ADMITTING, RequestState.ACTIVE]
