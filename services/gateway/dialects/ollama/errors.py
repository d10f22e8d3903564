"""Ollama's error body."""

from __future__ import annotations

import msgspec

from services.gateway.dialects.wording import wording
from services.protocol.errors import CorralError


class _ErrorBody(msgspec.Struct):
    error: str


def error_body(error: CorralError) -> bytes:
    return msgspec.json.encode(_ErrorBody(wording(error)))
