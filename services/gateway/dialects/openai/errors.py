"""OpenAI's error body."""

from __future__ import annotations

import msgspec

from services.gateway.dialects.wording import wording
from services.protocol.errors import CorralError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    431: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


#: OpenAI's names for fields that a worker's request calls differently.
_PARAMS = {"context": "prompt"}


class _Error(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _ErrorBody(msgspec.Struct):
    error: _Error


def error_body(error: CorralError) -> bytes:
    return _body(wording(error), error.status, param=_PARAMS.get(error.field, error.field) or None, code=error.code)


def status_body(status: int, message: str) -> bytes:
    """The body for a request that is refused before it reaches a route."""
    return _body(message, status, param=None, code=None)


def _body(message: str, status: int, *, param: str | None, code: str | None) -> bytes:
    return msgspec.json.encode(_ErrorBody(_Error(message, _TYPES.get(status, "api_error"), param, code)))
