"""Renders a worker's events as /api/chat and /api/generate responses."""

from __future__ import annotations

from collections.abc import Iterator

from services.gateway.dialects.logprobs import TokenEntry, token_entry
from services.gateway.dialects.ollama.calls import Assembly, Call
from services.gateway.dialects.ollama.chunks import Chunk, Fields, IdleAnswer, encode
from services.gateway.dialects.ollama.errors import error_body
from services.gateway.requests.stopwatch import Stopwatch
from services.protocol.errors import CorralError
from services.protocol.messages import Event, Finished, FinishReason, Frame, Started

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"


class ChatReply:
    """`model` is the name that the caller sent. For `calls_only` see Assembly."""

    def __init__(self, model: str, stopwatch: Stopwatch, *, stream: bool, calls_only: bool = False) -> None:
        self.stream = stream
        self._model = model
        self._stopwatch = stopwatch
        self._load_ns = 0
        self._assembly = Assembly(calls_only=calls_only)
        self._held: list[Fields] = []
        self._logprobs: list[TokenEntry] = []

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
                self._logprobs += map(token_entry, event.logprobs)
                return self._rendered(_parts(event, self._assembly.push(event.tool_calls)))
            case Finished():
                calls = self._assembly.flush(cut_off=event.reasons[0] is FinishReason.LENGTH)
                last_calls = self._rendered(_call_parts(calls))
                return last_calls + self._line(self._final(event))
        return b""

    def render_error(self, error: CorralError) -> bytes:
        return error_body(error) + b"\n"

    def _rendered(self, parts: Iterator[Fields]) -> bytes:
        """One line per part, or one empty line if there are only logprobs."""
        if not self.stream:
            self._held += parts
            return b""
        lines = b"".join([self._line(self._chunk(part)) for part in parts])
        return lines or (self._line(self._chunk(Fields())) if self._logprobs else b"")

    def _line(self, chunk: Chunk) -> bytes:
        chunk.logprobs, self._logprobs = self._logprobs, []
        return encode(chunk) + b"\n" if self.stream else encode(chunk)

    def _final(self, event: Finished) -> Chunk:
        chunk = self._chunk(_joined(self._held), done=True)
        reason = event.reasons[0]
        chunk.done_reason = "stop" if reason is FinishReason.TOOL_CALLS else reason.value
        chunk.total_duration = self._stopwatch.elapsed_ns()
        chunk.load_duration = self._load_ns
        chunk.prompt_eval_count = event.usage.prompt_tokens
        chunk.prompt_eval_duration = event.timings.prefill_ns
        chunk.eval_count = event.usage.completion_tokens
        # A one-token answer takes no time from its first token to its last, but clients divide by this duration.
        chunk.eval_duration = max(event.timings.decode_ns, min(1, event.usage.completion_tokens))
        return chunk

    def _chunk(self, part: Fields, *, done: bool = False) -> Chunk:
        return part.chat(self._model, self._stopwatch.now(), done=done)

    def _started(self, event: Started) -> None:
        pass

    def _generated(self, event: Frame) -> None:
        pass


class GenerateReply(ChatReply):
    """Also returns the conversation so far as token ids (`context`), unless `return_context` is false."""

    def __init__(self, model: str, stopwatch: Stopwatch, *, stream: bool, return_context: bool) -> None:
        super().__init__(model, stopwatch, stream=stream)
        self._context: list[int] | None = [] if return_context else None

    def _started(self, event: Started) -> None:
        if self._context is not None:
            self._context.extend(event.prompt_ids)

    def _generated(self, event: Frame) -> None:
        if self._context is not None:
            self._context.extend(event.token_ids)

    def _chunk(self, part: Fields, *, done: bool = False) -> Chunk:
        chunk = part.generate(self._model, self._stopwatch.now(), done=done)
        if done and self._context:
            chunk.context = self._context
        return chunk


class LoadReply:
    """The answer to a request without messages or a prompt once the model is loaded: one object, even if the caller asked for a
    stream."""

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


def _parts(frame: Frame, calls: list[Call | str]) -> Iterator[Fields]:
    """Reasoning, text and calls go into separate lines, because many clients read only one of them per line."""
    if frame.reasoning:
        yield Fields(thinking=frame.reasoning)
    if frame.text:
        yield Fields(text=frame.text)
    yield from _call_parts(calls)


def _call_parts(calls: list[Call | str]) -> Iterator[Fields]:
    for call in calls:
        yield Fields(text=call) if isinstance(call, str) else Fields(calls=(call,))


def _joined(parts: list[Fields]) -> Fields:
    return Fields(
        "".join([part.text for part in parts]),
        "".join([part.thinking for part in parts]),
        tuple(call for part in parts for call in part.calls),
    )
