"""Isolation domains: which requests may share cached prefixes.

A cached prefix makes an answer faster and shows up in `cached_tokens`, so a caller who shares a cache can find out what others
have asked.
"""

from __future__ import annotations

import enum
import hashlib

from services.protocol.routes import Caller


class Isolation(enum.StrEnum):
    """Who shares a domain: all callers, the keys of one team (keys without a team share one domain), or each key alone."""

    ALL = "all"
    TEAM = "team"
    KEY = "key"

    def domain(self, caller: Caller, cache_salt: str) -> str:
        """The domain of a request, at most 64 characters. Only callers who send the same `cache_salt` share a domain."""
        match self:
            case Isolation.ALL:
                scope = ""
            case Isolation.TEAM:
                scope = caller.team
            case Isolation.KEY:
                scope = caller.id
        if not scope and not cache_salt:
            return ""
        # The length prefix separates the parts: otherwise ("ab", "c") and ("a", "bc") would give the same domain.
        return hashlib.blake2b(f"{len(scope)}:{scope}{cache_salt}".encode(), digest_size=16).hexdigest()
