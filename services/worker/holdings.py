"""Holdings: what the queue takes this worker's cache to hold, against what it does hold."""

from __future__ import annotations

from collections.abc import Collection

from services.protocol.messages import Request
from services.protocol.prefixes import prefixes


class Holdings:
    """The queue counts the prefixes of a request as held from its claim on. Only the worker's loop changes this."""

    def __init__(self) -> None:
        self._claimed: dict[str, frozenset[bytes]] = {}
        self._told: set[bytes] = set()

    def claimed(self, request: Request) -> None:
        digests = frozenset(prefix.digest for prefix in prefixes(request))
        self._claimed[request.id] = digests
        self._told |= digests

    def dropped(self, held: Collection[str]) -> frozenset[bytes]:
        """Digests that the queue still counts as held, of prompts of which the cache holds nothing: `held` are the requests that it
        holds something of."""
        self._claimed = {request: digests for request, digests in self._claimed.items() if request in held}
        return frozenset(self._told.difference(*self._claimed.values()))

    def forget(self, dropped: frozenset[bytes]) -> None:
        """The queue has been told of them."""
        self._told -= dropped
