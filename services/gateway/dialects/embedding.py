"""Requests for vectors, which both dialects come down to, and vectors as workers send them."""

from __future__ import annotations

import sys
from array import array

from services.gateway.ticket import Ticket
from services.protocol.messages import EmbedRequest, Overflow


def embed_request(
    ticket: Ticket,
    inputs: tuple[str | tuple[int, ...], ...],
    *,
    dimensions: int | None = None,
    normalize: bool = True,
    overflow: Overflow = "truncate",
) -> EmbedRequest:
    """`dimensions` that are not positive count as none, as with Ollama. Raises UnsupportedCapability."""
    ticket.target.require("embedding")
    return EmbedRequest(
        id=ticket.id,
        version=ticket.target.version.digest,
        gateway=ticket.gateway,
        caller=ticket.caller,
        inputs=inputs,
        dimensions=dimensions if dimensions and dimensions > 0 else None,
        normalize=normalize,
        overflow=overflow,
    )


def numbers(vector: bytes) -> list[float]:
    """float32 in little-endian order."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
