"""The load generator: streamed requests over bare sockets, one connection each, in one asyncio process.

While an answer arrives, its bytes are only stored with the time of their arrival; `sse` parses them afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from comparison import sse
from comparison.measures import Answer

#: The same fields for both servers: greedy, no end before the last token, usage in the last event.
_ALWAYS = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}


class Refused(Exception):
    """The server answered with an error or not at all."""


class Request:
    """A request that was sent. It continues in the background; `answer` waits for its end."""

    def __init__(self, receiver: _Receiver, transport: asyncio.Transport, sent_s: float) -> None:
        self._receiver = receiver
        self._transport = transport
        self._sent_s = sent_s

    async def events(self, count: int) -> None:
        """Waits for about this many events. Raises Refused if the answer ends earlier."""
        self._receiver.wanted = count
        self._receiver.check()
        await self._receiver.enough
        if self._receiver.seen < count:
            raise Refused(f"the answer ended early: {self._receiver.tail()}")

    async def answer(self) -> Answer:
        await self._receiver.ended
        return _answer(self._receiver.pieces, self._sent_s)

    def leave(self) -> Answer:
        """Closes the connection and returns what has arrived."""
        self._transport.abort()
        return _answer(self._receiver.pieces, self._sent_s)


class Client:
    """`model` is the name by which the server knows the model."""

    def __init__(self, port: int, model: str) -> None:
        self._port = port
        self._model = model

    async def complete(self, prompt: str, tokens: int) -> Answer:
        return await (await self.start(prompt, tokens)).answer()

    async def chat(self, messages: Sequence[dict[str, str]], tokens: int) -> Answer:
        request = await self._send("/v1/chat/completions", {"messages": list(messages), "max_tokens": tokens})
        return await request.answer()

    async def start(self, prompt: str, tokens: int) -> Request:
        return await self._send("/v1/completions", {"prompt": prompt, "max_tokens": tokens})

    async def _send(self, path: str, asked: dict[str, Any]) -> Request:
        body = json.dumps({"model": self._model, **asked, **_ALWAYS}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        transport, receiver = await asyncio.get_running_loop().create_connection(_Receiver, "127.0.0.1", self._port)
        sent_s = time.perf_counter()
        transport.write(head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        return Request(receiver, transport, sent_s)


class _Receiver(asyncio.Protocol):
    """`enough` is done after `wanted` events, or when the answer has ended."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.pieces: list[sse.Piece] = []
        self.seen = 0
        self.wanted = 0
        self.enough: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))
        if self.wanted:
            self.seen += data.count(b"data: ")
            self.check()

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self.ended, self.enough):
            if not future.done():
                future.set_result(None)

    def check(self) -> None:
        if self.seen >= self.wanted and not self.enough.done():
            self.enough.set_result(None)

    def tail(self) -> str:
        return b"".join(data for _, data in self.pieces[-3:]).decode(errors="replace")[-300:]


def _answer(pieces: Sequence[sse.Piece], sent_s: float) -> Answer:
    """Raises Refused."""
    if not pieces:
        raise Refused("the server closed the connection without an answer")
    head, body = sse.parse(pieces)
    if head.status != 200:
        raise Refused(f"status {head.status}: {b''.join(data for _, data in body).decode(errors='replace')[:300]}")
    times: list[float] = []
    texts: list[str] = []
    usage: dict[str, Any] = {}
    for at, event in sse.events(body):
        if "error" in event:
            raise Refused(f"failed while it was answered: {event['error']}")
        if text := "".join(map(_text, event.get("choices", ()))):
            times.append(at)
            texts.append(text)
        usage = event.get("usage") or usage
    if not times:
        raise Refused("the answer had no text")
    return Answer(
        sent_s=sent_s,
        token_times=tuple(times),
        text="".join(texts),
        prompt_tokens=usage.get("prompt_tokens", 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        completion_tokens=usage.get("completion_tokens") or len(times),
    )


def _text(choice: dict[str, Any]) -> str:
    """The text of a completion or of a chat."""
    text: str = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return text
