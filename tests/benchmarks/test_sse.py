"""A server's response, split at any position."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparison import sse

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: Chunked\r\n\r\n"
PLAIN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(number: int) -> bytes:
    return b"data: " + json.dumps({"number": number, "text": "two\n\nlines, and \u00fc"}).encode() + b"\n\n"


def read(pieces: list[sse.Piece]) -> list[tuple[float, dict[str, Any]]]:
    head, body = sse.parse(pieces)
    assert head == sse.Head(200, True)
    return list(sse.events(body))


def test_an_event_has_the_time_of_its_last_byte() -> None:
    first, second = chunk(event(0)), chunk(b": a comment\n" + event(1) + event(2))
    pieces = [(1.0, CHUNKED + first[:9]), (2.0, first[9:] + second[:-1]), (3.0, second[-1:] + b"0\r\n\r\n")]
    assert [(at, found["number"]) for at, found in read(pieces)] == [(2.0, 0), (3.0, 1), (3.0, 2)]


@given(st.lists(st.integers(0, 400)))
def test_the_position_of_the_split_does_not_matter(cuts: list[int]) -> None:
    raw = CHUNKED + chunk(event(0) + event(1)[:7]) + chunk(event(1)[7:]) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [(float(end), raw[begin:end]) for begin, end in zip(places, places[1:], strict=False)]
    assert [found["number"] for _, found in read(pieces)] == [0, 1]


def test_a_truncated_response_has_the_events_that_arrived() -> None:
    assert [found["number"] for _, found in read([(1.0, CHUNKED + chunk(event(0)) + chunk(event(1))[:-5])])] == [0]


def test_a_response_without_chunks() -> None:
    assert sse.parse([(1.0, PLAIN)]) == (sse.Head(503, False), [(1.0, b"{}")])


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\n", b"220 mail.example.org ESMTP\r\n\r\n", b"\r\n\r\n"])
def test_an_invalid_response_is_refused(raw: bytes) -> None:
    with pytest.raises(sse.MalformedAnswer):
        sse.parse([(1.0, raw)])
