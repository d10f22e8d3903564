"""Renders the choices of an answer, as stream deltas or as whole objects. Each ChoiceWriter belongs to one choice of one reply."""

from __future__ import annotations

from typing import Protocol

from services.gateway.dialects.logprobs import token_entry
from services.gateway.dialects.openai.logprobs import ChatLogprobs, TextLogprobs, TextOffsets, text_logprobs
from services.gateway.dialects.openai.objects import (
    Call,
    Choice,
    Delta,
    DeltaCall,
    DeltaChoice,
    DeltaFunction,
    Message,
    MessageChoice,
    TextChoice,
)
from services.protocol.messages import ChosenLogprob, Frame, ToolCallDelta


class ChoiceWriter(Protocol):
    def opening(self) -> list[Choice]:
        """The first chunks of a stream, if they are needed before the first frame."""
        ...

    def deltas(self, frame: Frame) -> list[Choice]:
        """Renders a frame for a stream."""
        ...

    def finish(self, reason: str) -> list[Choice]:
        """The last chunks of a stream."""
        ...

    def hold(self, frame: Frame) -> None:
        """Collects a frame for `whole`."""
        ...

    def whole(self, reason: str) -> Choice: ...


class ChatChoiceWriter:
    """The first delta carries the role, even if the answer is empty."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._role = "assistant"
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[ToolCallDelta]] = {}
        self._logprobs: list[ChosenLogprob] = []

    def opening(self) -> list[Choice]:
        return [self._delta(Delta(content=""), None)] if self._role else []

    def deltas(self, frame: Frame) -> list[Choice]:
        said = _said(frame)
        logprobs = _chat_logprobs(frame.logprobs)
        if logprobs and not said:
            said = [Delta(content="")]
        return [self._delta(delta, logprobs if delta is said[0] else None) for delta in said]

    def finish(self, reason: str) -> list[Choice]:
        return [*self.opening(), DeltaChoice(self._index, Delta(), reason)]

    def hold(self, frame: Frame) -> None:
        self._text.append(frame.text)
        self._reasoning.append(frame.reasoning)
        self._logprobs += frame.logprobs
        for piece in frame.tool_calls:
            self._calls.setdefault(piece.index, []).append(piece)

    def whole(self, reason: str) -> Choice:
        calls = tuple(_call(pieces) for _, pieces in sorted(self._calls.items()))
        text = "".join(self._text)
        message = Message("assistant", None if calls and not text else text, "".join(self._reasoning), calls)
        return MessageChoice(self._index, message, reason, _chat_logprobs(self._logprobs))

    def _delta(self, delta: Delta, logprobs: ChatLogprobs | None) -> Choice:
        delta.role, self._role = self._role, ""
        return DeltaChoice(self._index, delta, None, logprobs)


class TextChoiceWriter:
    """`before` is text to put before the generated text (`echo`)."""

    def __init__(self, index: int, before: str) -> None:
        self._index = index
        self._before = before
        self._offsets = TextOffsets()
        self._text: list[str] = []
        self._logprobs: list[ChosenLogprob] = []

    def opening(self) -> list[Choice]:
        return []

    def deltas(self, frame: Frame) -> list[Choice]:
        text, self._before = self._before + frame.text, ""
        if not text and not frame.logprobs:
            return []
        return [TextChoice(text, self._index, self._logprobs_of(frame.logprobs), None)]

    def finish(self, reason: str) -> list[Choice]:
        return [TextChoice(self._before, self._index, None, reason)]

    def hold(self, frame: Frame) -> None:
        self._text.append(frame.text)
        self._logprobs += frame.logprobs

    def whole(self, reason: str) -> Choice:
        return TextChoice(self._before + "".join(self._text), self._index, self._logprobs_of(self._logprobs), reason)

    def _logprobs_of(self, logprobs: tuple[ChosenLogprob, ...] | list[ChosenLogprob]) -> TextLogprobs | None:
        return text_logprobs(logprobs, self._offsets) if logprobs else None


def _said(frame: Frame) -> list[Delta]:
    """Reasoning, text and calls go into separate deltas, as with Ollama."""
    said = []
    if frame.reasoning:
        said.append(Delta(reasoning=frame.reasoning))
    if frame.text:
        said.append(Delta(content=frame.text))
    if frame.tool_calls:
        said.append(Delta(tool_calls=tuple(map(_delta_call, frame.tool_calls))))
    return said


def _delta_call(piece: ToolCallDelta) -> DeltaCall:
    function = DeltaFunction(piece.arguments, piece.name)
    return DeltaCall(piece.index, function, piece.id, "function") if piece.name else DeltaCall(piece.index, function)


def _call(pieces: list[ToolCallDelta]) -> Call:
    return Call.of(pieces[0].id, pieces[0].name, "".join([piece.arguments for piece in pieces]))


def _chat_logprobs(logprobs: tuple[ChosenLogprob, ...] | list[ChosenLogprob]) -> ChatLogprobs | None:
    return ChatLogprobs(list(map(token_entry, logprobs))) if logprobs else None
