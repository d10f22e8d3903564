"""Computes a request's queueing terms from its headers, within what the caller's key and the gateway's settings allow."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from services.protocol.errors import BadRequest
from services.protocol.routes import LOCAL_CALLER, Caller
from services.protocol.waiting import Priority, Terms

PRIORITY_HEADER = "x-priority"
TIMEOUT_HEADER = "x-request-timeout"

#: A request's record in Redis expires after this time.
_MAX_TIMEOUT_S = 12 * 3600.0


class Limits(msgspec.Struct, frozen=True):
    """Limits from the gateway's settings.

    - `queue`: how many requests may wait for one version.
    - `caller_share`: the fraction of them that may belong to one caller.
    - `timeout_s`: how long a request waits by default.
    - `keep_alive_s`: the longest keep_alive for callers who aren't admins; None for no limit.
    """

    queue: int
    caller_share: float
    timeout_s: float
    keep_alive_s: float | None

    def terms(self, caller: Caller, headers: Mapping[str, str], *, asked: Priority | None = None) -> Terms:
        """The terms for one request. `asked` is the priority in the body; the header overrides it.

        Raises BadRequest if a header is invalid.
        """
        requested = _priority(headers.get(PRIORITY_HEADER)) or asked or Priority.NORMAL
        return Terms(
            priority=requested.at_most(caller.priority),
            weight=caller.weight,
            caller_limit=self._caller_limit(caller),
            timeout_ms=math.ceil(1000 * self._timeout_s(headers.get(TIMEOUT_HEADER))),
        )

    def keep_alive_ms(self, caller: Caller, asked_ms: int | None) -> int | None:
        """Limits the keep_alive that the caller asked for. Negative means forever."""
        if asked_ms is None or self.keep_alive_s is None or caller.admin:
            return asked_ms
        longest_ms = math.ceil(1000 * self.keep_alive_s)
        return longest_ms if asked_ms < 0 else min(asked_ms, longest_ms)

    def _caller_limit(self, caller: Caller) -> int | None:
        """All requests without a key belong to one caller, so that caller may fill the whole queue."""
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
        return min(seconds, _MAX_TIMEOUT_S)


def _priority(header: str | None) -> Priority | None:
    if header is None:
        return None
    try:
        return Priority(header.strip().lower())
    except ValueError:
        raise BadRequest(f"{PRIORITY_HEADER}: must be one of {', '.join(Priority)}") from None
