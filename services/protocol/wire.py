"""The encoding of messages: one byte of protocol version, then msgpack.

A reader of another protocol version raises ProtocolMismatch instead of misreading the message.
"""

from __future__ import annotations

import logging
from typing import Generic, TypeVar

import msgspec

from services.protocol.errors import ProtocolMismatch

log = logging.getLogger(__name__)

PROTOCOL_VERSION = 1

_PREFIX = bytes([PROTOCOL_VERSION])
_encoder = msgspec.msgpack.Encoder()

Message = TypeVar("Message", bound=msgspec.Struct)


def encode(message: msgspec.Struct) -> bytes:
    return _PREFIX + _encoder.encode(message)


class Decoder(Generic[Message]):
    """Decodes one type of message. Raises ProtocolMismatch for another protocol version or malformed bytes."""

    def __init__(self, kind: type[Message]) -> None:
        self._kind = kind
        self._decoder = msgspec.msgpack.Decoder(kind)

    def __call__(self, data: bytes) -> Message:
        if data[:1] != _PREFIX:
            raise ProtocolMismatch(
                f"{self._kind.__name__} has protocol version {data[0] if data else 'none'}; this release uses {PROTOCOL_VERSION}"
            )
        try:
            return self._decoder.decode(memoryview(data)[1:])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolMismatch(f"{self._kind.__name__} does not decode: {error}") from error

    def known(self, data: bytes) -> Message | None:
        """Like a call of the decoder, but logs a mismatch and returns None. For keys that many senders write to, so that a sender of another
        release does not block the others."""
        try:
            return self(data)
        except ProtocolMismatch as mismatch:
            log.warning("message skipped: error=%r", str(mismatch))
            return None
