"""The load generator, with a scripted server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from comparison.client import Client, Refused

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}


Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def event(fields: dict[str, Any]) -> bytes:
    data = b"data: " + json.dumps(fields).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def text(content: str) -> bytes:
    return event({"choices": [{"text": content}]})


@asynccontextmanager
async def server(answer: Answering) -> AsyncIterator[tuple[Client, list[bytes]]]:
    """A server that gives every request this answer; yields a client and the received requests."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
        asked.append(head + await reader.readexactly(int(length.split()[1])))
        await answer(reader, writer)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield Client(listener.sockets[0].getsockname()[1], "m"), asked


async def test_a_completion_is_measured() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in (HEAD, text("one"), text(""), text(" two"), event({"choices": [], "usage": USAGE}), b"0\r\n\r\n"):
            writer.write(part)
            await writer.drain()

    async with server(answer) as (client, asked):
        got = await client.complete("Count.", 3)
    assert (got.text, got.prompt_tokens, got.cached_tokens, got.completion_tokens) == ("one two", 12, 8, 3)
    assert len(got.token_times) == 2, "an event without text is no token"
    assert got.sent_s < got.token_times[0] <= got.token_times[1]
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    wanted = {"model": "m", "prompt": "Count.", "max_tokens": 3, "temperature": 0, "stream": True, "ignore_eos": True}
    assert json.loads(body) == wanted | {"stream_options": {"include_usage": True}}


async def test_a_chat_starts_with_an_event_without_text() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        role = event({"choices": [{"delta": {"role": "assistant", "content": None}}]})
        writer.write(HEAD + role + event({"choices": [{"delta": {"content": "hello"}}]}) + b"0\r\n\r\n")

    async with server(answer) as (client, asked):
        got = await client.chat([{"role": "user", "content": "hi"}], 8)
    assert (got.text, len(got.token_times), got.completion_tokens) == ("hello", 1, 1)
    assert json.loads(asked[0].partition(b"\r\n\r\n")[2])["messages"] == [{"role": "user", "content": "hi"}]


async def test_leaving_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + text("one") + text(" two"))
        with suppress(ConnectionError):
            await reader.read()
        gone.set()

    async with server(answer) as (client, _):
        request = await client.start("Count.", 100)
        await request.events(2)
        got = request.leave()
        assert (got.text, got.completion_tokens) == ("one two", 2)
        async with asyncio.timeout(5):
            await gone.wait()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\nqueue full", "status 503: queue full"),
        (HEAD + text("one") + event({"error": {"message": "worker lost"}}), "worker lost"),
        (HEAD + b"0\r\n\r\n", "no text"),
    ],
)
async def test_errors_become_refusals_with_the_reason(raw: bytes, reason: str) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    async with server(answer) as (client, _):
        with pytest.raises(Refused, match=reason):
            await client.complete("Count.", 3)


async def test_an_answer_that_ends_early_is_a_refusal() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + text("one") + b"0\r\n\r\n")

    async with server(answer) as (client, _):
        request = await client.start("Count.", 3)
        with pytest.raises(Refused, match="ended early"):
            await request.events(2)
