"""The requests that this worker has claimed and not yet ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from services.protocol.messages import Claim, Event, Finished


@dataclass
class ClaimedRequest:
    """`cancelled`: its gateway or the queue no longer wants an answer from this worker."""

    claim: Claim
    cancelled: bool = False


class InFlight:
    """By request id. Only the worker's event loop uses it. `answered` counts the requests that ended with Finished."""

    def __init__(self) -> None:
        self.answered = 0
        self._by_id: dict[str, ClaimedRequest] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._by_id)

    def ids(self) -> frozenset[str]:
        return frozenset(self._by_id)

    def get(self, request: str) -> ClaimedRequest | None:
        return self._by_id.get(request)

    def snapshot(self) -> list[ClaimedRequest]:
        return list(self._by_id.values())

    def holds(self, claimed: ClaimedRequest) -> bool:
        """False once it has ended, or was lost and claimed again."""
        return self._by_id.get(claimed.claim.request.id) is claimed

    def add(self, claim: Claim) -> ClaimedRequest:
        claimed = self._by_id[claim.request.id] = ClaimedRequest(claim)
        self._empty.clear()
        return claimed

    def end(self, event: Event) -> None:
        """`event` is terminal. It does nothing if the request was claimed again: the new claim still runs."""
        claimed = self._by_id.get(event.request)
        if claimed is not None and claimed.claim.epoch == event.epoch:
            del self._by_id[event.request]
            self.answered += isinstance(event, Finished)
        if not self._by_id:
            self._empty.set()

    async def wait_until_empty(self) -> None:
        await self._empty.wait()
