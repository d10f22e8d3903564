"""What a parser of answers is: text in, as it is generated, and content, reasoning and tool calls out.

However a text is cut into pieces, the same is released in the end. No parser raises, whatever a model writes: what is not well
formed is content, unless it stands in the arguments of a call that has begun; there it stays, as JSON that does not parse.
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
    """What a piece of text released."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class Parser(Protocol):
    """The state of one answer. Nothing is pushed after `flush`."""

    def push(self, text: str) -> Parsed: ...

    def flush(self) -> Parsed:
        """The end of the text: what was held back is released as what it turned out to be."""


class PlainParser:
    """All text is content."""

    def push(self, text: str) -> Parsed:
        return Parsed(text)

    def flush(self) -> Parsed:
        return Parsed()


class Prose:
    """Running text whose white space is held back until more text follows. `trimmed`: it is dropped where the text begins."""

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
        """Something else follows: white space before it and behind it is layout."""
        self._space, self._trimmed = "", True

    def end(self) -> str:
        space, self._space = self._space, ""
        return space


class Release:
    """Collects what a parser releases, until `take` hands it out. `call_id` gives the id of the call with an index."""

    def __init__(self, call_id: Callable[[int], str]) -> None:
        self._call_id = call_id
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
        """What is called by no name is no call, and its arguments are content."""
        self._is_call = _NAME.fullmatch(name) is not None
        if not self._is_call:
            self.content(name)
            return
        self._prose.interrupt()
        self._calls.append(ToolCallDelta(self._num_calls, self._call_id(self._num_calls), name))
        self._num_calls += 1

    def arguments(self, text: str) -> None:
        """A part of the arguments of the call that was begun last."""
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
        """What was taken in so far is not part of the answer."""
        self.take()
        self._prose = Prose()

    def end(self) -> None:
        self._content += self._prose.end()

    def take(self) -> Parsed:
        parsed = Parsed(self._content, self._reasoning, tuple(self._calls))
        self._content, self._reasoning, self._calls = "", "", []
        return parsed


class StateParser:
    """A parser as a machine of states. A state is a method that takes what it can from `text`; it returns whether anything may go
    on from there, False to wait for more text. With `is_whole` nothing follows, and there is nothing to wait for."""

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
        """Takes the text before the first of the tags, and the tag. Without one, all that cannot belong to a tag."""
        before, tag, self.text = split(self.text, tags, is_whole=self.is_whole)
        return before, tag

    def skip_space(self) -> bool:
        """Whether something else is there."""
        self.text = self.text.lstrip()
        return bool(self.text)

    def could_be(self, tag: str, text: str) -> bool:
        """Whether more text might make a tag of all of `text`."""
        return not self.is_whole and len(text) < len(tag) and tag.startswith(text)
