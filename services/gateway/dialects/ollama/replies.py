"""Events as /api/chat and /api/generate tell them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from services.gateway.dialects.ollama.errors import error_body
from services.gateway.stopwatch import Stopwatch
from services.protocol.errors import CorralError
from services.protocol.messages import Event, Finished, Frame, Started

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"

_encode = msgspec.json.Encoder().encode


class _AssistantMessage(msgspec.Struct):
    role: str
    content: str


class _ChatChunk(msgspec.Struct, omit_defaults=True):
    """Durations in nanoseconds. What is zero or empty is left out, as Go's omitempty does."""

    model: str
    created_at: str
    message: _AssistantMessage
    done: bool
    done_reason: str = ""
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


class _GenerateChunk(msgspec.Struct, omit_defaults=True):
    """Likewise."""

    model: str
    created_at: str
    response: str
    done: bool
    done_reason: str = ""
    context: list[int] = []
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


_Chunk = _ChatChunk | _GenerateChunk

#: model, stopwatch and done_reason (`load` or `unload`) -> body
IdleAnswer = Callable[[str, Stopwatch, str], bytes]


class ChatReply:
    """`model` is the name as the caller wrote it."""

    def __init__(self, model: str, stopwatch: Stopwatch, *, stream: bool) -> None:
        self.stream = stream
        self._model = model
        self._stopwatch = stopwatch
        self._load_ns = 0
        self._held: list[str] = []

    @property
    def content_type(self) -> str:
        return NDJSON if self.stream else JSON

    def render(self, event: Event) -> bytes:
        match event:
            case Started():
                self._load_ns = self._stopwatch.elapsed_ns()
                self._started(event)
            case Frame():
                self._generated(event)
                if not self.stream:
                    self._held.append(event.text)
                elif event.text:
                    return self._line(self._chunk(event.text, done=False))
            case Finished():
                return self._line(self._final(event))
        return b""

    def render_error(self, error: CorralError) -> bytes:
        return error_body(error) + b"\n"

    def _line(self, chunk: _Chunk) -> bytes:
        return _encode(chunk) + b"\n" if self.stream else _encode(chunk)

    def _final(self, event: Finished) -> _Chunk:
        chunk = self._chunk("".join(self._held), done=True)
        chunk.done_reason = event.reasons[0].value
        chunk.total_duration = self._stopwatch.elapsed_ns()
        chunk.load_duration = self._load_ns
        chunk.prompt_eval_count = event.usage.prompt_tokens
        chunk.prompt_eval_duration = event.timings.prefill_ns
        chunk.eval_count = event.usage.completion_tokens
        # An answer of one token takes no time from its first token to its last, but clients divide by this.
        chunk.eval_duration = max(event.timings.decode_ns, min(1, event.usage.completion_tokens))
        return chunk

    def _chunk(self, text: str, *, done: bool) -> _Chunk:
        return _ChatChunk(self._model, self._stopwatch.now(), _AssistantMessage("assistant", text), done)

    def _started(self, event: Started) -> None:
        pass

    def _generated(self, event: Frame) -> None:
        pass


class GenerateReply(ChatReply):
    """Also returns the conversation so far as token ids, for the next request's `context`; not in raw mode."""

    def __init__(self, model: str, stopwatch: Stopwatch, *, stream: bool, return_context: bool) -> None:
        super().__init__(model, stopwatch, stream=stream)
        self._context: list[int] | None = [] if return_context else None

    def _started(self, event: Started) -> None:
        if self._context is not None:
            self._context.extend(event.prompt_ids)

    def _generated(self, event: Frame) -> None:
        if self._context is not None:
            self._context.extend(event.token_ids)

    def _chunk(self, text: str, *, done: bool) -> _Chunk:
        chunk = _GenerateChunk(self._model, self._stopwatch.now(), text, done)
        if done and self._context:
            chunk.context = self._context
        return chunk


class LoadReply:
    """What a request without messages or a prompt answers once the model is up: one object, also where a stream was asked for."""

    stream = False
    content_type = JSON

    def __init__(self, model: str, stopwatch: Stopwatch, idle: IdleAnswer) -> None:
        self._model = model
        self._stopwatch = stopwatch
        self._idle = idle

    def render(self, event: Event) -> bytes:
        return self._idle(self._model, self._stopwatch, "load") if isinstance(event, Finished) else b""

    def render_error(self, error: CorralError) -> bytes:
        return error_body(error)


def idle_chat(model: str, stopwatch: Stopwatch, reason: str) -> bytes:
    return _encode(_ChatChunk(model, stopwatch.now(), _AssistantMessage("assistant", ""), True, reason))


def idle_generate(model: str, stopwatch: Stopwatch, reason: str) -> bytes:
    return _encode(_GenerateChunk(model, stopwatch.now(), "", True, reason))
