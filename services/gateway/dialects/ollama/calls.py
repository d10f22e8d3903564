"""Tool calls in Ollama's form: complete, with the arguments as a JSON object."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from services.protocol.messages import ToolCallDelta


class _Function(msgspec.Struct):
    index: int
    name: str
    arguments: dict[str, Any]


class Call(msgspec.Struct):
    id: str
    function: _Function


class _Pieces:
    """The deltas of one call received so far."""

    def __init__(self, first: ToolCallDelta) -> None:
        self.index = first.index
        self.id = first.id
        self.name = first.name
        self.arguments = [first.arguments]


class Assembly:
    """Joins tool call deltas into complete calls.

    If the arguments aren't a JSON object, for example because the token limit cut them off, the call is returned as text, or
    dropped if `calls_only`.
    """

    def __init__(self, *, calls_only: bool = False) -> None:
        self._calls_only = calls_only
        self._open: _Pieces | None = None

    def push(self, deltas: Iterable[ToolCallDelta]) -> list[Call | str]:
        """Returns the calls that `deltas` completes. A call is complete when the next one starts."""
        complete: list[Call | str] = []
        for delta in deltas:
            if self._open is not None and self._open.index == delta.index:
                self._open.arguments.append(delta.arguments)
            else:
                complete += self.flush()
                self._open = _Pieces(delta)
        return complete

    def flush(self, *, cut_off: bool = False) -> list[Call | str]:
        """Completes the last call. `cut_off`: the answer hit its token limit, so empty arguments are incomplete rather than
        `{}`."""
        pieces, self._open = self._open, None
        if pieces is None:
            return []
        call = _call(pieces, empty="" if cut_off else "{}")
        return [] if self._calls_only and isinstance(call, str) else [call]


def _call(pieces: _Pieces, *, empty: str) -> Call | str:
    text = "".join(pieces.arguments)
    try:
        arguments = msgspec.json.decode(text or empty, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return f'{{"name": {msgspec.json.encode(pieces.name).decode()}, "arguments": {text}'
    return Call(pieces.id, _Function(pieces.index, pieces.name, arguments))
