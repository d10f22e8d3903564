"""The output pipeline of one answer: token ids → content, reasoning and tool calls. It is a deterministic state machine, so
replaying the same ids gives the same deltas.

token bytes → UTF-8 decoder → stop jail → parser. Each stage holds text back, because a character, a stop string or a tag may
span tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass

from services.protocol.messages import ToolCallDelta
from services.worker.chat.parser import Parsed, Parser, PlainParser
from services.worker.engine.aho_corasick import ROOT, AhoCorasick

StopStrings = AhoCorasick[str]


@dataclass(frozen=True)
class Delta:
    """Newly released output. `stopped`: the answer reached a stop string, which is not part of the text."""

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    stopped: bool = False


class OutputPipeline:
    """`token_bytes` returns the bytes of a token. The choices of a request share `stop`. `saw_tool_calls` is True once a tool
    call is released."""

    def __init__(self, token_bytes: Callable[[int], bytes], stop: StopStrings, parser: Parser | None = None) -> None:
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
        """Ends an answer that reached no stop string: releases the held text. An incomplete UTF-8 character is dropped."""
        return _joined(self._delta(self._parser.push(self._jail.flush())), self._delta(self._parser.flush()))

    def _delta(self, parsed: Parsed, *, stopped: bool = False) -> Delta:
        self.saw_tool_calls = self.saw_tool_calls or bool(parsed.tool_calls)
        return Delta(parsed.content, parsed.reasoning, parsed.tool_calls, stopped)


class StopJail:
    """Holds back text that may be the start of a stop string. The first complete stop string ends the text; if several are
    complete at the same character, the longest counts."""

    def __init__(self, stop: StopStrings) -> None:
        self._stop = stop
        self._state = ROOT
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The released text, and whether a stop string ends it."""
        if not self._stop.has_words:
            return text, False
        stop, state = self._stop, self._state
        whole = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            state = stop.step(state, character)
            if length := stop.matches[state]:
                self._held, self._state = "", ROOT
                return whole[: end - length], True
        released = len(whole) - stop.depths[state]
        self._held, self._state = whole[released:], state
        return whole[:released], False

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
