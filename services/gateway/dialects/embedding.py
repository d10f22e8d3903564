"""Embedding requests, shared by both dialects, and the decoding of the vectors that workers send."""

from __future__ import annotations

import sys
from array import array

from services.gateway.dialects.bodies import check_limit
from services.gateway.dialects.limits import TEXTS
from services.gateway.requests.ticket import Ticket
from services.protocol.messages import EmbedRequest, Overflow

_MAX_DIMENSION_COUNT = 2**31 - 1


def embed_request(
    ticket: Ticket,
    inputs: tuple[str | tuple[int, ...], ...],
    *,
    dimensions: int | None = None,
    normalize: bool = True,
    overflow: Overflow = "truncate",
) -> EmbedRequest:
    """As with Ollama, `dimensions` that aren't positive are ignored. Raises UnsupportedCapability."""
    ticket.target.require("embedding")
    return EmbedRequest(
        id=ticket.id,
        version=ticket.target.version.digest,
        gateway=ticket.gateway,
        caller=ticket.caller,
        inputs=inputs,
        dimensions=min(dimensions, _MAX_DIMENSION_COUNT) if dimensions and dimensions > 0 else None,
        normalize=normalize,
        overflow=overflow,
    )


def checked_text(text: str) -> str:
    """Returns one input. Raises InvalidField if it is too long."""
    check_limit(TEXTS, len(text), field="input")
    return text


def numbers(vector: bytes) -> list[float]:
    """Decodes a vector of little-endian float32."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
