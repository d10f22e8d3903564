"""Tool calls as Ollama tells them: whole, with their arguments as an object."""

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
    """Of one call."""

    def __init__(self, first: ToolCallDelta) -> None:
        self.index = first.index
        self.id = first.id
        self.name = first.name
        self.arguments = [first.arguments]


class Assembly:
    """Puts the pieces together. A call whose arguments are no JSON object, as where its tokens ran out, must not be made: it is
    told as the text that it is."""

    def __init__(self) -> None:
        self._open: _Pieces | None = None

    def push(self, deltas: Iterable[ToolCallDelta]) -> list[Call | str]:
        """The calls that are complete now, because another begins."""
        complete: list[Call | str] = []
        for delta in deltas:
            if self._open is not None and self._open.index == delta.index:
                self._open.arguments.append(delta.arguments)
            else:
                complete += self.flush()
                self._open = _Pieces(delta)
        return complete

    def flush(self, *, cut_off: bool = False) -> list[Call | str]:
        """The last call has ended; `cut_off`: because no tokens were left, so that what is missing was not meant to be empty."""
        pieces, self._open = self._open, None
        return [_call(pieces, empty="" if cut_off else "{}")] if pieces else []


def _call(pieces: _Pieces, *, empty: str) -> Call | str:
    text = "".join(pieces.arguments)
    try:
        arguments = msgspec.json.decode(text or empty, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return f'{{"name": {msgspec.json.encode(pieces.name).decode()}, "arguments": {text}'
    return Call(pieces.id, _Function(pieces.index, pieces.name, arguments))
