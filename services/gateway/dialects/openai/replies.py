"""Renders a worker's events as /v1/chat/completions and /v1/completions responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import msgspec

from services.gateway.dialects.openai.choices import ChatChoiceWriter, ChoiceWriter, TextChoiceWriter
from services.gateway.dialects.openai.errors import error_body
from services.gateway.dialects.openai.objects import NO_USAGE, Choice, Object, UsageObject, encode, usage_object
from services.gateway.requests.stopwatch import Stopwatch
from services.protocol.errors import CorralError
from services.protocol.messages import Event, Finished, Frame

SSE = "text/event-stream"
JSON = "application/json"
FINGERPRINT = "fp_ollama"


class _Reply(ABC):
    """Shared by both routes. `model` is the name that the caller sent, `id` the request's id, `n` the number of choices."""

    _id_prefix: str
    _whole_object: str
    _chunk_object: str
    _usage_before_the_last: UsageObject | None = None

    def __init__(self, model: str, stopwatch: Stopwatch, *, id: str, n: int, stream: bool, include_usage: bool) -> None:
        self.stream = stream
        self._model = model
        self._id = self._id_prefix + id
        self._created = stopwatch.started_at_s
        self._include_usage = include_usage
        self._writers = [self._writer(index) for index in range(n)]
        self._reasoning_tokens = [_ReasoningTokens() for _ in range(n)]
        self._opened = n == 1

    @property
    def content_type(self) -> str:
        return SSE if self.stream else JSON

    def render(self, event: Event) -> bytes:
        match event:
            case Frame():
                self._reasoning_tokens[event.choice].count(event)
                writer = self._writers[event.choice]
                if self.stream:
                    return self._openings() + self._events(writer.deltas(event))
                writer.hold(event)
            case Finished() if self.stream:
                return self._last_events(event)
            case Finished():
                choices = [writer.whole(reason) for writer, reason in self._ended(event)]
                return encode(self._object(self._whole_object, *choices, usage=self._usage(event)))
            case _:
                pass
        return b""

    def render_error(self, error: CorralError) -> bytes:
        return b"data: " + error_body(error) + b"\n\n"

    def _last_events(self, event: Finished) -> bytes:
        finish = b"".join([self._events(writer.finish(reason)) for writer, reason in self._ended(event)])
        usage = self._event(usage=self._usage(event)) if self._include_usage else b""
        return finish + usage + b"data: [DONE]\n\n"

    def _openings(self) -> bytes:
        """The opening chunks of all choices, sorted by choice: OpenAI's client assumes that the first chunk belongs to the
        first one."""
        if self._opened:
            return b""
        self._opened = True
        return b"".join([self._events(writer.opening()) for writer in self._writers])

    def _ended(self, event: Finished) -> Iterable[tuple[ChoiceWriter, str]]:
        return zip(self._writers, [reason.value for reason in event.reasons], strict=True)

    def _usage(self, event: Finished) -> UsageObject:
        return usage_object(event.usage, reasoning_tokens=sum(counter.tokens for counter in self._reasoning_tokens))

    def _events(self, choices: Iterable[Choice]) -> bytes:
        return b"".join([self._event(choice) for choice in choices])

    def _event(self, *choices: Choice, usage: UsageObject | None = None) -> bytes:
        reported = (usage or self._usage_before_the_last) if self._include_usage else msgspec.UNSET
        return b"data: " + encode(self._object(self._chunk_object, *choices, usage=reported)) + b"\n\n"

    def _object(self, kind: str, *choices: Choice, usage: UsageObject | msgspec.UnsetType | None) -> Object:
        return Object(self._id, kind, self._created, self._model, FINGERPRINT, choices, usage)

    @abstractmethod
    def _writer(self, index: int) -> ChoiceWriter: ...


class ChatReply(_Reply):
    _id_prefix = "chatcmpl-"
    _whole_object = "chat.completion"
    _chunk_object = "chat.completion.chunk"

    def _writer(self, index: int) -> ChoiceWriter:
        return ChatChoiceWriter(index)


class CompletionReply(_Reply):
    """In chunks before the last, `usage` is all zeros as with Ollama, not null as in chats. `echo` is put before each choice's
    text."""

    _id_prefix = "cmpl-"
    _whole_object = "text_completion"
    _chunk_object = "text_completion"
    _usage_before_the_last = NO_USAGE

    def __init__(
        self, model: str, stopwatch: Stopwatch, *, id: str, n: int, stream: bool, include_usage: bool, echo: str = ""
    ) -> None:
        self._echo = echo
        super().__init__(model, stopwatch, id=id, n=n, stream=stream, include_usage=include_usage)

    def _writer(self, index: int) -> ChoiceWriter:
        return TextChoiceWriter(index, self._echo)


class _ReasoningTokens:
    """Counts the reasoning tokens of one choice. Tokens that release no output yet are counted with the output that follows."""

    def __init__(self) -> None:
        self.tokens = 0
        self._held = 0

    def count(self, frame: Frame) -> None:
        self._held += len(frame.token_ids)
        if frame.reasoning:
            self.tokens += self._held
        if frame.reasoning or frame.text or frame.tool_calls:
            self._held = 0
