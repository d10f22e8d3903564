"""The output pipeline of one answer: token ids → content, reasoning and tool calls. A deterministic state machine, so that
replaying the same ids gives the same deltas.

bytes of the token → UTF-8 hold-back (a character may span tokens) → stop jail (a stop string may span tokens) → parser (a tag may)
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.protocol.messages import ToolCallDelta
from services.worker.chat.parser import Parsed, Parser, PlainParser
from services.worker.chat.tags import split


@dataclass(frozen=True)
class Delta:
    """What is released now; `stopped` where a stop string was met, which is not part of any text."""

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    stopped: bool = False


class OutputPipeline:
    """`token_bytes` gives the bytes of a token; `stop` are the request's stop strings, empty ones ignored. `saw_tool_calls`: a tool
    call has been released."""

    def __init__(self, token_bytes: Callable[[int], bytes], stop: Sequence[str], parser: Parser | None = None) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._jail = StopJail(stop)
        self._parser = parser or PlainParser()
        self.saw_tool_calls = False

    def push(self, token: int) -> Delta:
        text, stopped = self._jail.push(self._decoder.decode(self._token_bytes(token)))
        delta = self._delta(self._parser.push(text), stopped=stopped)
        return _joined(delta, self._delta(self._parser.flush())) if stopped else delta

    def flush(self) -> Delta:
        """The end, where no stop string made one: releases what was held back. Bytes that never became a character are no text."""
        return _joined(self._delta(self._parser.push(self._jail.flush())), self._delta(self._parser.flush()))

    def _delta(self, parsed: Parsed, *, stopped: bool = False) -> Delta:
        self.saw_tool_calls = self.saw_tool_calls or bool(parsed.tool_calls)
        return Delta(parsed.content, parsed.reasoning, parsed.tool_calls, stopped)


class StopJail:
    """Holds back text that may be the beginning of a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is released, and whether a stop string ends it."""
        released, found, rest = split(self._held + text, self._stop)
        self._held = "" if found else rest
        return released, found is not None

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _joined(delta: Delta, tail: Delta) -> Delta:
    return Delta(
        delta.text + tail.text,
        delta.reasoning + tail.reasoning,
        delta.tool_calls + tail.tool_calls,
        delta.stopped or tail.stopped,
    )
