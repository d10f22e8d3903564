"""On which terms a request waits: what its caller's key and the gateway's settings allow, of what its headers ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from services.protocol.errors import BadRequest
from services.protocol.routes import LOCAL_CALLER, Caller
from services.protocol.waiting import Priority, Terms

PRIORITY_HEADER = "x-priority"
TIMEOUT_HEADER = "x-request-timeout"

#: A request's record in Redis lives no longer.
_LONGEST_S = 12 * 3600.0


class Limits(msgspec.Struct, frozen=True):
    """Of the gateway's settings. `queue`: requests that may wait for one version; `caller_share`: the part of them that may be one
    caller's; `timeout_s`: how long one waits that does not say."""

    queue: int
    caller_share: float
    timeout_s: float

    def terms(self, caller: Caller, headers: Mapping[str, str], *, asked: Priority | None = None) -> Terms:
        """`asked` is the body's word, which the header overrules. Raises BadRequest for a header that says nothing sensible."""
        wanted = _priority(headers.get(PRIORITY_HEADER)) or asked or Priority.NORMAL
        return Terms(
            priority=wanted.at_most(caller.priority),
            weight=caller.weight,
            caller_limit=self._caller_limit(caller),
            timeout_ms=math.ceil(1000 * self._timeout_s(headers.get(TIMEOUT_HEADER))),
        )

    def _caller_limit(self, caller: Caller) -> int | None:
        """Whoever calls without a key is one caller here, however many they are, and may fill the queue."""
        if caller.max_waiting is not None or caller.id == LOCAL_CALLER.id:
            return caller.max_waiting
        return math.ceil(self.queue * self.caller_share)

    def _timeout_s(self, header: str | None) -> float:
        if header is None:
            return self.timeout_s
        try:
            seconds = float(header)
        except ValueError:
            seconds = math.nan
        if not seconds > 0:
            raise BadRequest(f"{TIMEOUT_HEADER}: must be a number of seconds greater than 0")
        return min(seconds, _LONGEST_S)


def _priority(header: str | None) -> Priority | None:
    if header is None:
        return None
    try:
        return Priority(header.strip().lower())
    except ValueError:
        raise BadRequest(f"{PRIORITY_HEADER}: must be one of {', '.join(Priority)}") from None
