"""One request, from admission to its terminal event.

The gateway owns it: workers may be lost under it. It knows every token id that was committed to each of its choices, the epoch of
the claim whose events count, and the sequence number that must come next. Everything runs on one event loop, so there is no lock.
"""

from __future__ import annotations

import asyncio
import enum
import math

import msgspec

from services.gateway.requests.request_state import RequestState
from services.gateway.requests.worker_losses import WorkerLosses
from services.protocol.errors import WorkerLost, from_code
from services.protocol.messages import (
    Committed,
    Event,
    Failed,
    Finished,
    FinishReason,
    Frame,
    GenerateRequest,
    Request,
    Started,
)
from services.protocol.waiting import QueuePosition, Terms

_PLAIN_TERMS = Terms()
_BROKEN_OFF = frozenset({FinishReason.ABORT, FinishReason.ERROR})


class Verdict(enum.Enum):
    """What an event is to its request."""

    NEXT = "next"
    STALE = "stale"
    """From a superseded claim, or published twice by a worker that got no answer from Redis: dropped."""
    GAP = "gap"
    """Events before it are missing, so the rest of this claim is of no use."""


class ClientGone(Exception):
    """The client has left."""


class PendingRequest:
    """`id` is the request's id for its client; `request.id` is its id in the queue, which changes when it is sent again.

    `cost` (tokens) and `terms` are those it was admitted on. `committed` holds the token ids of each choice. `position` is the
    queue position it was admitted at, None until then. `expires_at` (time.monotonic) is when it leaves the queue unless a worker
    has claimed it.
    """

    def __init__(self, request: Request, *, cost: float = 0, terms: Terms = _PLAIN_TERMS) -> None:
        self.id = request.id
        self.request = request
        self.cost = cost
        self.terms = terms
        self.epoch = 0
        self.committed: list[list[int]] = [[] for _ in range(request.n if isinstance(request, GenerateRequest) else 1)]
        self.losses = WorkerLosses()
        self.position: QueuePosition | None = None
        self.expires_at = math.inf
        self._state = RequestState.ADMITTING
        self._reasons: list[FinishReason | None] = [None] * len(self.committed)
        self._next_seq = 0
        self._renamed = 0
        self._started: Started | None = None
        self._unread: list[Event] = []
        self._error: Exception | None = None
        self._arrived = asyncio.Event()

    @property
    def state(self) -> RequestState:
        return self._state

    @property
    def is_awaited(self) -> bool:
        return self._state.is_awaited

    @property
    def has_tokens(self) -> bool:
        """The client may have a part of the answer."""
        return any(self.committed)

    @property
    def resumption(self) -> tuple[Committed, ...]:
        """What the next worker continues from; empty if it starts at the beginning."""
        if not self.has_tokens:
            return ()
        return tuple(Committed(tuple(tokens), reason) for tokens, reason in zip(self.committed, self._reasons, strict=True))

    @property
    def num_committed(self) -> int:
        return sum(map(len, self.committed))

    @property
    def num_unread(self) -> int:
        """Events that the response has not taken yet."""
        return len(self._unread)

    @property
    def spent(self) -> int:
        """Tokens computed for it so far."""
        prefilled = self._started.prompt_tokens - self._started.cached_tokens if self._started else 0
        return prefilled + self.num_committed

    async def events(self) -> list[Event]:
        """At least one event: all that have arrived. After the last one, raises what ended the request."""
        while not self._unread:
            if self._error:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        unread, self._unread = self._unread, []
        return unread

    async def arrives(self, *, within_s: float) -> bool:
        """Whether `events` has something to return or raise before `within_s` are over."""
        try:
            async with asyncio.timeout(within_s):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def enter(self, state: RequestState) -> None:
        """Raises AssertionError for a transition that RequestState does not draw."""
        assert self._state.may_become(state), f"request {self.id}: {self._state.value} → {state.value}"
        self._state = state

    def admitted(self, position: QueuePosition) -> None:
        self.position = position
        if self._state is RequestState.ADMITTING:
            self.enter(RequestState.ACTIVE)

    def accept(self, event: Event) -> Verdict:
        """Takes the next event of the current claim, or the first one of a newer claim."""
        if event.epoch < self.epoch:
            return Verdict.STALE
        if event.epoch > self.epoch:
            self.supersede(event.epoch)
        if event.seq < self._next_seq:
            return Verdict.STALE
        if event.seq > self._next_seq:
            return Verdict.GAP
        self._next_seq += 1
        self._take(event)
        return Verdict.NEXT

    def supersede(self, epoch: int) -> None:
        """From now on only events of the claim `epoch`, or of a later one, count."""
        self.epoch = epoch
        self._next_seq = 0

    def rename(self) -> None:
        """Gives the request another id in the queue, so that no event of an earlier claim is about it."""
        self._renamed += 1
        self.request = msgspec.structs.replace(self.request, id=f"{self.id}.{self._renamed}")
        if self.epoch > 0:
            self.expires_at = math.inf
        self.supersede(0)

    def fail(self, error: Exception) -> None:
        """`events` raises the error; an earlier one stays."""
        self._error = self._error or error
        self._arrived.set()

    def _take(self, event: Event) -> None:
        match event:
            case Failed() | Finished() if is_broken_off(event):  # another worker continues
                pass
            case Failed():
                self.fail(from_code(event.code, event.message, field=event.field))
            case Started() if self._started:  # an earlier worker's Started was passed on
                pass
            case Finished() if self._started:
                self._pass_on(_as_of(self._started, event))
            case _:
                self._record(event)
                self._pass_on(event)

    def _pass_on(self, event: Event) -> None:
        self._unread.append(event)
        self._arrived.set()

    def _record(self, event: Event) -> None:
        if isinstance(event, Started):
            self._started = event
        elif isinstance(event, Frame):
            self.committed[event.choice].extend(event.token_ids)
            self._reasons[event.choice] = event.reason
            if event.token_ids:
                self.losses.clear_blame()


def _as_of(started: Started, finished: Finished) -> Finished:
    """Replaces the cached tokens by those of the request's first worker, whichever worker finishes."""
    if finished.usage.cached_tokens == started.cached_tokens:
        return finished
    usage = msgspec.structs.replace(finished.usage, cached_tokens=started.cached_tokens)
    return msgspec.structs.replace(finished, usage=usage)


def is_broken_off(event: Event) -> bool:
    """The worker ended the request without an answer, and its gateway had not asked for that."""
    match event:
        case Failed():
            return event.code == WorkerLost.code
        case Finished():
            return not _BROKEN_OFF.isdisjoint(event.reasons)
    return False
