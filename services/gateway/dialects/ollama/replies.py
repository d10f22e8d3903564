"""Events as /api/chat and /api/generate tell them."""

from __future__ import annotations

from collections.abc import Iterator

from services.gateway.dialects.logprobs import TokenEntry, token_entry
from services.gateway.dialects.ollama.calls import Assembly, Call
from services.gateway.dialects.ollama.chunks import Chunk, IdleAnswer, Part, encode
from services.gateway.dialects.ollama.errors import error_body
from services.gateway.stopwatch import Stopwatch
from services.protocol.errors import CorralError
from services.protocol.messages import Event, Finished, FinishReason, Frame, Started

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"


class ChatReply:
    """`model` is the name as the caller wrote it."""

    def __init__(self, model: str, stopwatch: Stopwatch, *, stream: bool) -> None:
        self.stream = stream
        self._model = model
        self._stopwatch = stopwatch
        self._load_ns = 0
        self._assembly = Assembly()
        self._held: list[Part] = []
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
                return self._told(_parts(event, self._assembly.push(event.tool_calls)))
            case Finished():
                calls = self._assembly.flush(cut_off=event.reasons[0] is FinishReason.LENGTH)
                last_calls = self._told(_call_parts(calls))
                return last_calls + self._line(self._final(event))
        return b""

    def render_error(self, error: CorralError) -> bytes:
        return error_body(error) + b"\n"

    def _told(self, parts: Iterator[Part]) -> bytes:
        """A line for each; one without anything where there are only logprobs to tell."""
        if not self.stream:
            self._held += parts
            return b""
        lines = b"".join([self._line(self._chunk(part)) for part in parts])
        return lines or (self._line(self._chunk(Part())) if self._logprobs else b"")

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
        # An answer of one token takes no time from its first token to its last, but clients divide by this.
        chunk.eval_duration = max(event.timings.decode_ns, min(1, event.usage.completion_tokens))
        return chunk

    def _chunk(self, part: Part, *, done: bool = False) -> Chunk:
        return part.chat(self._model, self._stopwatch.now(), done=done)

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

    def _chunk(self, part: Part, *, done: bool = False) -> Chunk:
        chunk = part.generate(self._model, self._stopwatch.now(), done=done)
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


def _parts(frame: Frame, calls: list[Call | str]) -> Iterator[Part]:
    """Thoughts, text and calls come in lines of their own: many a client looks at one of them only."""
    if frame.reasoning:
        yield Part(thinking=frame.reasoning)
    if frame.text:
        yield Part(text=frame.text)
    yield from _call_parts(calls)


def _call_parts(calls: list[Call | str]) -> Iterator[Part]:
    for call in calls:
        yield Part(text=call) if isinstance(call, str) else Part(calls=(call,))


def _joined(parts: list[Part]) -> Part:
    return Part(
        "".join([part.text for part in parts]),
        "".join([part.thinking for part in parts]),
        tuple(call for part in parts for call in part.calls),
    )
