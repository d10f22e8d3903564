"""Events as /v1/chat/completions and /v1/completions tell them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec

from services.gateway.dialects.openai.errors import error_body
from services.gateway.stopwatch import Stopwatch
from services.protocol.errors import CorralError
from services.protocol.messages import Event, Finished, Frame, Usage

SSE = "text/event-stream"
JSON = "application/json"
FINGERPRINT = "fp_ollama"

_encode = msgspec.json.Encoder().encode


class _PromptDetails(msgspec.Struct):
    cached_tokens: int


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails


class _Delta(msgspec.Struct, omit_defaults=True):
    role: str = ""
    content: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str


class _DeltaChoice(msgspec.Struct):
    index: int
    delta: _Delta
    finish_reason: str | None


class _MessageChoice(msgspec.Struct):
    index: int
    message: _Message
    finish_reason: str | None


class _TextChoice(msgspec.Struct):
    text: str
    index: int
    logprobs: None
    finish_reason: str | None


_Choice = _DeltaChoice | _MessageChoice | _TextChoice


class _Object(msgspec.Struct, omit_defaults=True):
    """A whole answer, or a chunk of one."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[_Choice, ...]
    usage: _Usage | None = None


_NO_USAGE = _Usage(0, 0, 0, _PromptDetails(0))


class _Reply(ABC):
    """What both routes share. `model` is the name as the caller wrote it, `id` the request's."""

    _id_prefix: str
    _whole_object: str
    _chunk_object: str

    def __init__(self, model: str, stopwatch: Stopwatch, *, id: str, stream: bool, include_usage: bool) -> None:
        self.stream = stream
        self._model = model
        self._id = self._id_prefix + id
        self._created = stopwatch.started_at_s
        self._include_usage = include_usage
        self._held: list[str] = []

    @property
    def content_type(self) -> str:
        return SSE if self.stream else JSON

    def render(self, event: Event) -> bytes:
        match event:
            case Frame() if not self.stream:
                self._held.append(event.text)
            case Frame() if event.text:
                return self._event(self._delta(event.text))
            case Finished() if self.stream:
                return self._last_events(event)
            case Finished():
                return _encode(self._object(self._whole_object, self._whole(event), usage=_usage(event.usage)))
            case _:
                pass
        return b""

    def render_error(self, error: CorralError) -> bytes:
        return b"data: " + error_body(error) + b"\n\n"

    def _last_events(self, event: Finished) -> bytes:
        finish = self._event(self._finish(event.reasons[0].value))
        usage = self._event(usage=_usage(event.usage)) if self._include_usage else b""
        return finish + usage + b"data: [DONE]\n\n"

    def _event(self, *choices: _Choice, usage: _Usage | None = None) -> bytes:
        return b"data: " + _encode(self._object(self._chunk_object, *choices, usage=usage)) + b"\n\n"

    def _object(self, kind: str, *choices: _Choice, usage: _Usage | None) -> _Object:
        return _Object(self._id, kind, self._created, self._model, FINGERPRINT, choices, usage)

    @abstractmethod
    def _delta(self, text: str) -> _Choice: ...

    @abstractmethod
    def _finish(self, reason: str) -> _Choice: ...

    @abstractmethod
    def _whole(self, event: Finished) -> _Choice: ...


class ChatReply(_Reply):
    _id_prefix = "chatcmpl-"
    _whole_object = "chat.completion"
    _chunk_object = "chat.completion.chunk"
    _role = "assistant"

    def _last_events(self, event: Finished) -> bytes:
        """A stream says who speaks, also where nothing was said."""
        opening = self._event(self._delta("")) if self._role else b""
        return opening + super()._last_events(event)

    def _delta(self, text: str) -> _Choice:
        role, self._role = self._role, ""
        return _DeltaChoice(0, _Delta(role, text), None)

    def _finish(self, reason: str) -> _Choice:
        return _DeltaChoice(0, _Delta(), reason)

    def _whole(self, event: Finished) -> _Choice:
        return _MessageChoice(0, _Message("assistant", "".join(self._held)), event.reasons[0].value)


class CompletionReply(_Reply):
    """Where usage is wanted every chunk has one; that of all but the last is zero."""

    _id_prefix = "cmpl-"
    _whole_object = "text_completion"
    _chunk_object = "text_completion"

    def _event(self, *choices: _Choice, usage: _Usage | None = None) -> bytes:
        return super()._event(*choices, usage=usage or (_NO_USAGE if self._include_usage else None))

    def _delta(self, text: str) -> _Choice:
        return _TextChoice(text, 0, None, None)

    def _finish(self, reason: str) -> _Choice:
        return _TextChoice("", 0, None, reason)

    def _whole(self, event: Finished) -> _Choice:
        return _TextChoice("".join(self._held), 0, None, event.reasons[0].value)


def _usage(usage: Usage) -> _Usage:
    return _Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        _PromptDetails(usage.cached_tokens),
    )
