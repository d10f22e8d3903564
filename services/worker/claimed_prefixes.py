"""Which prefixes the queue believes this worker has cached, compared with what it has."""

from __future__ import annotations

from collections.abc import Collection

from services.protocol.messages import Request
from services.protocol.prefixes import prefixes


class ClaimedPrefixes:
    """The queue counts a request's prefixes as cached from the claim on. Only the worker's event loop uses it."""

    def __init__(self) -> None:
        self._claimed: dict[str, frozenset[bytes]] = {}
        self._reported: set[bytes] = set()

    def claimed(self, request: Request) -> None:
        digests = frozenset(prefix.digest for prefix in prefixes(request))
        self._claimed[request.id] = digests
        self._reported |= digests

    def dropped(self, held: Collection[str]) -> frozenset[bytes]:
        """Digests that the queue still counts as cached and that are not. `held`: the requests with tokens in the cache."""
        self._claimed = {request: digests for request, digests in self._claimed.items() if request in held}
        return frozenset(self._reported.difference(*self._claimed.values()))

    def forget(self, dropped: frozenset[bytes]) -> None:
        """The queue no longer counts these."""
        self._reported -= dropped
