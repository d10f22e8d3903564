"""Parser: splits generated text into content, reasoning and tool calls.

The result does not depend on how the text is cut into pieces. Parsers never raise, whatever a model writes: malformed text is
content, except in the arguments of a call that has started. There it remains as invalid JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.protocol.messages import ToolCallDelta
from services.worker.chat.tags import split

_NAME = re.compile(r"[\w.:/-]+")


@dataclass(frozen=True)
class Parsed:
    """The output that a piece of text released."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class Parser(Protocol):
    """Parses one answer. `push` must not be called after `flush`."""

    def push(self, text: str) -> Parsed: ...

    def flush(self) -> Parsed:
        """Ends the text and releases what was held back."""


class PlainParser:
    """All text is content."""

    def push(self, text: str) -> Parsed:
        return Parsed(text)

    def flush(self) -> Parsed:
        return Parsed()


class Prose:
    """Holds back trailing white space until more text follows. `trimmed`: leading white space is dropped."""

    def __init__(self, *, trimmed: bool = False) -> None:
        self._trimmed = trimmed
        self._space = ""

    def push(self, text: str) -> str:
        if self._trimmed:
            text = text.lstrip()
            self._trimmed = not text
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        return shown

    def interrupt(self) -> None:
        """Something else follows. The white space before and after it is layout and is dropped."""
        self._space, self._trimmed = "", True

    def end(self) -> str:
        space, self._space = self._space, ""
        return space


class Release:
    """Collects a parser's output until `take` returns it. `call_id` returns the id of the call with an index. `calls_only`: the
    answer must be a call, so any other text is part of one that was cut off, and is dropped."""

    def __init__(self, call_id: Callable[[int], str], *, calls_only: bool = False) -> None:
        self._call_id = call_id
        self._calls_only = calls_only
        self._num_calls = 0
        self._content = ""
        self._reasoning = ""
        self._calls: list[ToolCallDelta] = []
        self._prose = Prose()
        self._is_call = False

    def content(self, text: str) -> None:
        self._content += self._prose.push(text)

    def reasoning(self, text: str) -> None:
        self._reasoning += text

    def call(self, name: str) -> None:
        """Starts a call. If the name is invalid, the name and the arguments become content."""
        self._is_call = _NAME.fullmatch(name) is not None
        if not self._is_call:
            self.content(name)
            return
        self._prose.interrupt()
        self._calls.append(ToolCallDelta(self._num_calls, self._call_id(self._num_calls), name))
        self._num_calls += 1

    def arguments(self, text: str) -> None:
        """Adds to the arguments of the last call."""
        if not self._is_call:
            self.content(text)
        if not self._is_call or not text:
            return
        index = self._num_calls - 1
        if self._calls and self._calls[-1].index == index:
            last = self._calls.pop()
            self._calls.append(ToolCallDelta(index, last.id, last.name, last.arguments + text))
        else:
            self._calls.append(ToolCallDelta(index, arguments=text))

    def restart(self) -> None:
        """Discards the output so far: it is not part of the answer."""
        self.take()
        self._prose = Prose()

    def end(self) -> None:
        self._content += self._prose.end()

    def take(self) -> Parsed:
        parsed = Parsed("" if self._calls_only else self._content, self._reasoning, tuple(self._calls))
        self._content, self._reasoning, self._calls = "", "", []
        return parsed


class StateParser:
    """A parser as a state machine. A state is a method that consumes what it can of `text`. It returns True to run the current
    state again, False to wait for more text. If `is_whole`, the text has ended."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.text = ""
        self.is_whole = False
        self.state: Callable[[], bool] = self.begin

    def begin(self) -> bool:
        raise NotImplementedError

    def push(self, text: str) -> Parsed:
        self.text += text
        self._advance()
        return self.release.take()

    def flush(self) -> Parsed:
        self.is_whole = True
        self._advance()
        self.release.end()
        return self.release.take()

    def _advance(self) -> None:
        while self.state():
            pass

    def go(self, state: Callable[[], bool]) -> bool:
        self.state = state
        return True

    def until(self, *tags: str) -> tuple[str, str | None]:
        """Consumes the text up to the first of the tags, and the tag. Without a tag, consumes what cannot be part of one."""
        before, tag, self.text = split(self.text, tags, is_whole=self.is_whole)
        return before, tag

    def skip_space(self) -> bool:
        """Consumes white space. Returns whether other text follows."""
        self.text = self.text.lstrip()
        return bool(self.text)

    def could_be(self, tag: str, text: str) -> bool:
        """Whether `text` may still grow into `tag`."""
        return not self.is_whole and len(text) < len(tag) and tag.startswith(text)
