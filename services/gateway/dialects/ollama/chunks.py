"""Response objects of /api/chat and /api/generate: one line of a stream, or the whole answer."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from services.gateway.dialects.logprobs import TokenEntry
from services.gateway.dialects.ollama.calls import Call
from services.gateway.requests.stopwatch import Stopwatch

encode = msgspec.json.Encoder().encode

#: model, stopwatch and done_reason (`load` or `unload`) -> body
IdleAnswer = Callable[[str, Stopwatch, str], bytes]


class _Message(msgspec.Struct, omit_defaults=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: tuple[Call, ...] = ()


class Chunk(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Durations are in nanoseconds. Zero and empty fields are omitted, as with Go's omitempty."""

    done_reason: str = ""
    context: list[int] = []
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    logprobs: list[TokenEntry] = []


class _ChatChunk(Chunk):
    model: str
    created_at: str
    message: _Message
    done: bool


class _GenerateChunk(Chunk, omit_defaults=True):
    model: str
    created_at: str
    response: str
    done: bool
    thinking: str = ""


class Fields(msgspec.Struct, omit_defaults=True):
    """The part of the answer in one chunk."""

    text: str = ""
    thinking: str = ""
    calls: tuple[Call, ...] = ()

    def chat(self, model: str, created_at: str, *, done: bool = False) -> Chunk:
        return _ChatChunk(model, created_at, _Message("assistant", self.text, self.thinking, self.calls), done)

    def generate(self, model: str, created_at: str, *, done: bool = False) -> Chunk:
        return _GenerateChunk(model, created_at, self.text, done, self.thinking)


def idle_chat(model: str, stopwatch: Stopwatch, reason: str) -> bytes:
    return _idle(Fields().chat(model, stopwatch.now(), done=True), reason)


def idle_generate(model: str, stopwatch: Stopwatch, reason: str) -> bytes:
    return _idle(Fields().generate(model, stopwatch.now(), done=True), reason)


def _idle(chunk: Chunk, reason: str) -> bytes:
    chunk.done_reason = reason
    return encode(chunk)
