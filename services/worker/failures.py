"""Errors that concern a single request."""

from __future__ import annotations

import logging

from services.protocol.errors import CorralError

log = logging.getLogger(__name__)


def request_failure(request: str, reason: Exception) -> CorralError:
    """The error that the request fails with. An exception that is not a CorralError is a bug and is logged."""
    if isinstance(reason, CorralError):
        return reason
    log.error("internal error: request=%s", request, exc_info=reason)
    return CorralError("an internal error occurred; the worker's log has the details")
