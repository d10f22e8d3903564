"""Reasoning: the text that a model writes between two tags before it answers."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from services.worker.chat.parser import Parsed, Parser, Prose
from services.worker.chat.tags import split


class Phase(enum.Enum):
    """How far an answer is: not started, within its reasoning, or past it."""

    FRESH = enum.auto()
    REASONING = enum.auto()
    ANSWERING = enum.auto()


@dataclass(frozen=True)
class Reasoning:
    """`markers`: see Family. A grammar for the answer may start after `end`. `is_parsed_here` is False if the family's own
    parser separates reasoning from content."""

    open: str
    close: str
    markers: tuple[str, ...]
    end: str
    is_parsed_here: bool = True

    def phase(self, prompt: str) -> Phase:
        """The phase at the end of the prompt. Some templates open the reasoning themselves, and close it if none is wanted."""
        if not self.is_parsed_here:
            return Phase.FRESH
        tail = prompt.rstrip()
        if tail.endswith(self.open.rstrip()):
            return Phase.REASONING
        return Phase.ANSWERING if tail.endswith(self.close) else Phase.FRESH


def _tags(open: str, close: str) -> Reasoning:
    return Reasoning(open, close, markers=(open, close), end=close)


#: A template is matched by the closing tag: many contain only that one, to remove the reasoning of earlier turns.
REASONINGS = (
    _tags("<think>", "</think>"),
    _tags("[THINK]", "[/THINK]"),
    _tags("<seed:think>", "</seed:think>"),
    _tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Reasoning("<|channel>thought\n", "<channel|>", markers=("<|channel>", "<channel|>"), end="<channel|>"),
)

#: gpt-oss writes its reasoning as a separate message.
HARMONY_REASONING = Reasoning(
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant",
    markers=(),
    end="<|channel|>final<|message|>",
    is_parsed_here=False,
)


class ReasoningParser:
    """Parses the reasoning at the start of an answer and passes the rest to `answer`. White space around the reasoning is
    dropped.

    `opened`: the prompt opened the reasoning; some models open it again. `continued`: the prompt also holds part of it.
    """

    def __init__(self, reasoning: Reasoning, answer: Parser, *, opened: bool, continued: bool = False) -> None:
        self._reasoning = reasoning
        self._answer = answer
        self._phase = Phase.REASONING if continued else Phase.FRESH
        self._unopened = Phase.REASONING if opened else Phase.ANSWERING
        self._text = ""
        self._prose = Prose(trimmed=not continued)
        self._trims_answer = False

    def push(self, text: str) -> Parsed:
        self._text += text
        return self._parsed(is_whole=False)

    def flush(self) -> Parsed:
        parsed, tail = self._parsed(is_whole=True), self._answer.flush()
        return Parsed(parsed.content + tail.content, parsed.reasoning, parsed.tool_calls + tail.tool_calls)

    def _parsed(self, *, is_whole: bool) -> Parsed:
        if self._phase is Phase.FRESH:
            self._open(is_whole=is_whole)
        thoughts = self._think(is_whole=is_whole) if self._phase is Phase.REASONING else ""
        if self._phase is not Phase.ANSWERING:
            return Parsed(reasoning=thoughts)
        if self._trims_answer:
            self._text = self._text.lstrip()
            self._trims_answer = not self._text
        text, self._text = self._text, ""
        answer = self._answer.push(text)
        return Parsed(answer.content, thoughts, answer.tool_calls)

    def _open(self, *, is_whole: bool) -> None:
        text, tag = self._text.lstrip(), self._reasoning.open
        if text.startswith(tag):
            self._text = text[len(tag) :]
            self._phase = Phase.REASONING
        elif is_whole or not tag.startswith(text):
            self._phase = self._unopened

    def _think(self, *, is_whole: bool) -> str:
        before, tag, self._text = split(self._text, [self._reasoning.close], is_whole=is_whole)
        if tag:
            self._phase = Phase.ANSWERING
            self._trims_answer = True
        return self._prose.push(before)
