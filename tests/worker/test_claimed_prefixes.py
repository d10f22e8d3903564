"""Which prefixes a worker reports to the queue as dropped from its cache."""

from __future__ import annotations

from services.protocol.messages import GenerateRequest
from services.protocol.prefixes import prefixes
from services.worker.claimed_prefixes import ClaimedPrefixes
from tests.protocol.samples import a_request

SYSTEM = "Be brief. " * 100


def digests(*requests: GenerateRequest) -> set[bytes]:
    return {prefix.digest for request in requests for prefix in prefixes(request)}


def test_a_prefix_is_dropped_with_the_last_request_that_starts_with_it() -> None:
    one, two = a_request("one", text=SYSTEM + "1" * 600), a_request("two", text=SYSTEM + "2" * 600)
    holdings = ClaimedPrefixes()
    holdings.claimed(one)
    holdings.claimed(two)
    assert holdings.dropped({"one", "two"}) == set()
    assert holdings.dropped({"two"}) == digests(one) - digests(two)
    assert holdings.dropped(set()) == digests(one, two)


def test_reported_drops_are_not_repeated() -> None:
    request = a_request("one", text=SYSTEM)
    holdings = ClaimedPrefixes()
    holdings.claimed(request)
    dropped = holdings.dropped(set())
    assert dropped == holdings.dropped(set()) == digests(request)  # repeated while the queue cannot be reached
    holdings.forget(dropped)
    assert holdings.dropped(set()) == set()
    holdings.claimed(request)
    assert holdings.dropped({"one"}) == set()
