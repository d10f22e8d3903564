"""Digests of a prompt's prefixes, which show without tokenizing how much two prompts have in common.

The queue compares them to prefer the worker whose cache holds the longest prefix of a request's prompt (see queue_script).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import msgspec

from services.protocol.messages import GenerateRequest, Request
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt

#: The shortest prefix is MIN_PREFIX_BYTES bytes long, and each next one is GROWTH times as long. So the common length of two prompts is
#: underestimated by at most a fifth. With MAX_PREFIXES, only the first 258 kB of a prompt count.
MIN_PREFIX_BYTES = 256
GROWTH = 1.25
MAX_PREFIXES = 32

_DIGEST_BYTES = 8
_ENTRY = struct.Struct(f">{_DIGEST_BYTES}sI")


class Prefix(msgspec.Struct, frozen=True):
    """The digest of a prompt's first `length` bytes. Two prompts that share a prefix's digest also share those of all shorter prefixes."""

    digest: bytes
    length: int


def prefixes(request: Request) -> tuple[Prefix, ...]:
    """The prefixes of a request's prompt, shortest first. Empty for prompts below MIN_PREFIX_BYTES bytes and for requests that generate no text.
    Prompts of different isolation domains have no common digests."""
    if not isinstance(request, GenerateRequest):
        return ()
    return tuple(_digested(_parts(request.context, request.prompt), domain=request.isolation))


def pack(found: tuple[Prefix, ...]) -> bytes:
    """Encodes prefixes for queue_script, in 12 bytes each."""
    return b"".join(_ENTRY.pack(prefix.digest, prefix.length) for prefix in found)


def _digested(parts: Iterator[bytes], *, domain: str) -> Iterator[Prefix]:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES, key=domain.encode())
    lengths = (int(MIN_PREFIX_BYTES * GROWTH**index) for index in range(MAX_PREFIXES))
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
    """The parts of a prompt, in roughly the order in which chat templates render them. A part must not depend on later parts."""
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
