"""The life of one request in this gateway, drawn."""

from __future__ import annotations

import enum


class RequestState(enum.Enum):
    """What the gateway knows of the request, and whether a client waits for the answer.

        admitting ──▶ active ──▶ abandoned ──▶ cancelled
            │  └────────│────────▶   │  ◀─────────┘ │
            └───────────┴─────▶ ended ◀─────────────┘

    admitting → active      the queue has taken the request
    admitting → ended       the queue refused it
    admitting → abandoned   Redis was silent for too long
    active → ended          its terminal event arrived, its deadline passed, or too many workers were lost with it
    active → abandoned      the client left or reads too slowly, Redis was silent for too long, or the gateway met an error
    abandoned → cancelled   its worker got the cancellation; the terminal event has not arrived yet
    abandoned → ended       the request left the queue before a worker had it, or its terminal event arrived
    cancelled → ended       its terminal event arrived, or its worker was lost
    cancelled → abandoned   the gateway could not settle it; it is cancelled again

    While a request is active, workers may be lost and it may wait again: its claims are numbered by `PendingRequest.epoch`.
    """

    ADMITTING = "admitting"
    ACTIVE = "active"
    ABANDONED = "abandoned"
    CANCELLED = "cancelled"
    ENDED = "ended"

    @property
    def is_awaited(self) -> bool:
        """A client waits for the answer."""
        return self in (RequestState.ADMITTING, RequestState.ACTIVE)

    def may_become(self, state: RequestState) -> bool:
        return state in _NEXT[self]


_NEXT = {
    RequestState.ADMITTING: {RequestState.ACTIVE, RequestState.ABANDONED, RequestState.ENDED},
    RequestState.ACTIVE: {RequestState.ABANDONED, RequestState.ENDED},
    RequestState.ABANDONED: {RequestState.CANCELLED, RequestState.ENDED},
    RequestState.CANCELLED: {RequestState.ABANDONED, RequestState.ENDED},
    RequestState.ENDED: set[RequestState](),
}
