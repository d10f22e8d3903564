"""Parses a streamed answer afterwards: pieces with their arrival times become server-sent events with times.

Nothing is parsed while tokens arrive, because the load generator shares the processor with the server that it measures. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

#: The time of arrival in seconds, and the bytes that arrived together.
Piece = tuple[float, bytes]

_DONE = b"[DONE]"


class MalformedAnswer(Exception):
    """Not HTTP/1.1, or not server-sent events."""


class Head(NamedTuple):
    status: int
    chunked: bool


def parse(pieces: Iterable[Piece]) -> tuple[Head, list[Piece]]:
    """The head of an HTTP/1.1 response, and its body without the framing of chunks. Each part of the body has the arrival time
    of its last byte. Raises MalformedAnswer."""
    raw = b""
    rest = iter(pieces)
    for at, data in rest:
        raw += data
        if (end := raw.find(b"\r\n\r\n")) >= 0:
            head = _head(raw[:end])
            body = [(at, raw[end + 4 :]), *rest]
            return head, list(_dechunked(body)) if head.chunked else body
    raise MalformedAnswer(f"the connection ended within the head: {raw[:200]!r}")


def events(body: Iterable[Piece]) -> Iterator[tuple[float, dict[str, Any]]]:
    """The JSON objects of the `data:` lines, except the final [DONE]."""
    pending = b""
    for at, data in body:
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (payload := line[5:].strip()) != _DONE:
                yield at, json.loads(payload)


def _head(raw: bytes) -> Head:
    status, *fields = raw.lower().split(b"\r\n")
    words = status.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"http/1.") or not words[1].isdigit():
        raise MalformedAnswer(f"no HTTP answer: {raw[:200]!r}")
    chunked = any(name.startswith(b"transfer-encoding:") and b"chunked" in name for name in fields)
    return Head(int(words[1]), chunked)


def _dechunked(pieces: Iterable[Piece]) -> Iterator[Piece]:
    pending = b""
    for at, data in pieces:
        pending += data
        while (line_end := pending.find(b"\r\n")) >= 0:
            size = int(pending[:line_end].partition(b";")[0], 16)
            end = line_end + 2 + size
            if size == 0:
                return
            if len(pending) < end + 2:
                break
            yield at, pending[line_end + 2 : end]
            pending = pending[end + 2 :]
