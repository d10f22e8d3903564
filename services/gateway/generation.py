"""One logical request, from admission to its terminal event.

The gateway owns it: workers may be lost under it. It knows every token id that has been committed to each of its choices, the
epoch of the claim that may speak for it, and the sequence number that must come next. Only services.gateway.inflight writes it, and only the
response that waits for it reads it; both run on one event loop, therefore no lock.
"""

from __future__ import annotations

import asyncio
import enum
import math

import msgspec

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
from services.protocol.waiting import Place

WORKER_LOST = "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error"

_BROKEN_OFF = frozenset({FinishReason.ABORT, FinishReason.ERROR})


class Verdict(enum.Enum):
    TAKEN = "taken"
    LATE = "late"
    """From a claim that was superseded, or told twice by a worker that had no answer the first time: dropped."""
    GAP = "gap"
    """Something is missing before it: the claim is as good as lost."""


class ClientGone(Exception):
    """The client went away; there is nobody to answer."""


class Generation:
    """`committed` has the token ids of each choice. `abandoned`: nobody waits for it any more. `withdrawn`: whoever holds it has
    been told so. `losses` counts the claims that were lost with their workers, or broken off by one that could not go on; `crashes` those
    since the answer last got further of which the request may be the cause. `place` is where it stood in the queue when it was let
    in, `expires_at` (time.monotonic) when it leaves the queue if no worker has begun with it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.epoch = 0
        self.committed: list[list[int]] = [[] for _ in range(request.n if isinstance(request, GenerateRequest) else 1)]
        self.crashes = 0
        self.losses = 0
        self.place: Place | None = None
        self.expires_at = math.inf
        self.abandoned = False
        self.withdrawn = False
        self._reasons: list[FinishReason | None] = [None] * len(self.committed)
        self._next_seq = 0
        self._started: Started | None = None
        self._pending: list[Event] = []
        self._error: Exception | None = None
        self._arrived = asyncio.Event()

    @property
    def begun(self) -> bool:
        """The client may have seen a part of the answer."""
        return any(self.committed)

    @property
    def resumption(self) -> tuple[Committed, ...]:
        """What the next worker goes on behind; empty where it is to begin anew."""
        if not self.begun:
            return ()
        return tuple(Committed(tuple(tokens), reason) for tokens, reason in zip(self.committed, self._reasons, strict=True))

    @property
    def num_committed(self) -> int:
        return sum(map(len, self.committed))

    @property
    def spent(self) -> int:
        """Tokens that were computed for it so far."""
        prefilled = self._started.prompt_tokens - self._started.cached_tokens if self._started else 0
        return prefilled + self.num_committed

    async def events(self) -> list[Event]:
        """All that has arrived, at least one event. Raises what ended the request once the events before it are read."""
        while not self._pending:
            if self._error:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        pending, self._pending = self._pending, []
        return pending

    async def arrives(self, *, within_s: float) -> bool:
        """Whether by then `events` has something to give or to raise."""
        try:
            async with asyncio.timeout(within_s):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def accept(self, event: Event) -> Verdict:
        """Takes the next event of the current claim, or of a newer one."""
        if event.epoch < self.epoch:
            return Verdict.LATE
        if event.epoch > self.epoch:
            self.supersede(event.epoch)
        if event.seq < self._next_seq:
            return Verdict.LATE
        if event.seq > self._next_seq:
            return Verdict.GAP
        self._next_seq += 1
        self._hand_on(event)
        return Verdict.TAKEN

    def supersede(self, epoch: int) -> None:
        """From now on only the claim of `epoch`, or a later one, is listened to."""
        self.epoch = epoch
        self._next_seq = 0

    def lose(self, *, crashed: bool) -> None:
        """Its worker is gone or gave it up, by its own fault where it `crashed`."""
        self.crashes += crashed
        self.losses += 1

    def fail(self, error: Exception) -> None:
        """Ends the wait; an error that came first stays."""
        self._error = self._error or error
        self._arrived.set()

    def _hand_on(self, event: Event) -> None:
        match event:
            case Failed() | Finished() if is_broken_off(event):  # services.gateway.inflight looks for another worker
                pass
            case Failed():
                self.fail(from_code(event.code, event.message))
            case Started() if self._started:  # before, on a worker that was lost
                pass
            case Finished() if self._started:
                self._tell(_as_of(self._started, event))
            case _:
                self._keep(event)
                self._tell(event)

    def _tell(self, event: Event) -> None:
        self._pending.append(event)
        self._arrived.set()

    def _keep(self, event: Event) -> None:
        if isinstance(event, Started):
            self._started = event
        elif isinstance(event, Frame):
            self.committed[event.choice].extend(event.token_ids)
            self._reasons[event.choice] = event.reason
            if event.token_ids:
                self.crashes = 0


def _as_of(started: Started, finished: Finished) -> Finished:
    """A later worker computed tokens that the request's first one had in its cache, or the other way round."""
    if finished.usage.cached_tokens == started.cached_tokens:
        return finished
    usage = msgspec.structs.replace(finished.usage, cached_tokens=started.cached_tokens)
    return msgspec.structs.replace(finished, usage=usage)


def is_broken_off(event: Event) -> bool:
    """The worker has ended the request without an answer, and not on its gateway's word."""
    match event:
        case Failed():
            return event.code == WorkerLost.code
        case Finished():
            return not _BROKEN_OFF.isdisjoint(event.reasons)
    return False
