"""The output pipeline of one request: token ids → text. A deterministic state machine, so that replaying the same ids gives
the same deltas.

bytes of the token → UTF-8 hold-back (a character may span tokens) → stop jail (a stop string may span tokens)
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.protocol.messages import ToolCallDelta


@dataclass(frozen=True)
class Delta:
    """Text that is released now; `stopped` where a stop string was met, which is not part of any text."""

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    stopped: bool = False


class OutputPipeline:
    """`token_bytes` gives the bytes of a token; `stop` are the request's stop strings, empty ones ignored."""

    def __init__(self, token_bytes: Callable[[int], bytes], stop: Sequence[str]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._jail = StopJail(stop)
        self.saw_tool_calls = False

    def push(self, token: int) -> Delta:
        return self._jail.push(self._decoder.decode(self._token_bytes(token)))

    def flush(self) -> Delta:
        """The end: releases what was held back. Bytes that never became a character are no text."""
        return Delta(self._jail.flush())


class StopJail:
    """Holds back text that may be the beginning of a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""

    def push(self, text: str) -> Delta:
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._held = ""
            return Delta(held[: min(found)], stopped=True)
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return Delta(held[: len(held) - keep])

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of `stop`, short of all of it, with which `text` ends."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
