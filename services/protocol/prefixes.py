"""How a prompt begins, as digests that tell without its tokens whether two prompts begin the same.

The queue compares them to leave a request to the worker whose cache holds the longest part of it (see queue.lua).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import msgspec

from services.protocol.messages import GenerateRequest, Request
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt

#: The first prefix is so long, in bytes, and each further one this much longer than the one before: how much two prompts share is known
#: to a fifth. Of a prompt of more than 250 kB the rest does not count.
SHORTEST = 256
GROWTH = 1.25
MAX_PREFIXES = 32

_DIGEST_BYTES = 8
_ENTRY = struct.Struct(f">{_DIGEST_BYTES}sI")


class Prefix(msgspec.Struct, frozen=True):
    """The digest of a prompt's first `length` bytes. Prompts with the same digest have those of all shorter prefixes in common too."""

    digest: bytes
    length: int


def prefixes(request: Request) -> tuple[Prefix, ...]:
    """The shortest first. None of short prompts and of what is not generated."""
    if not isinstance(request, GenerateRequest):
        return ()
    return tuple(_digested(_parts(request.context, request.prompt)))


def pack(found: tuple[Prefix, ...]) -> bytes:
    """As queue.lua reads them: 12 bytes each."""
    return b"".join(_ENTRY.pack(prefix.digest, prefix.length) for prefix in found)


def _digested(parts: Iterator[bytes]) -> Iterator[Prefix]:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    lengths = (int(SHORTEST * GROWTH**index) for index in range(MAX_PREFIXES))
    length, boundary = 0, next(lengths)
    for part in parts:
        rest = memoryview(part)
        while length + len(rest) >= boundary:
            cut = boundary - length
            digest.update(rest[:cut])
            yield Prefix(digest.digest(), boundary)
            length, rest = boundary, rest[cut:]
            following = next(lengths, None)
            if following is None:
                return
            boundary = following
        digest.update(rest)
        length += len(rest)


def _parts(context: tuple[int, ...], prompt: Prompt) -> Iterator[bytes]:
    """In about the order in which templates put them. A part never depends on what follows it."""
    if context:
        yield struct.pack(f"<{len(context)}I", *context)
    if not isinstance(prompt, ChatPrompt):
        yield prompt.text.encode()
        return
    if prompt.tools:
        yield msgspec.json.encode(prompt.tools)
    for message in prompt.messages:
        yield from _message_parts(message)


def _message_parts(message: ChatMessage) -> Iterator[bytes]:
    yield f"\0{message.role}\0".encode()
    yield message.content.encode()
    if message.tool_calls:
        yield msgspec.json.encode(message.tool_calls)
