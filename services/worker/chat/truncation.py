"""Which messages of a chat stay where not all of them fit. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from services.protocol.prompts import ChatMessage

Messages = tuple[ChatMessage, ...]


def shortened(messages: Sequence[ChatMessage]) -> list[Messages]:
    """The chat with ever more of its oldest messages missing, beginning with none.

    What the system says stays, and so do the last message and the last question. A call and its results stay together. Before
    the last question whole exchanges go, because many templates want the user to speak first.
    """
    anchors = _anchors(messages)
    return [
        tuple(message for index, message in enumerate(messages) if index >= cut or index in anchors) for cut in _cuts(messages)
    ]


def _anchors(messages: Sequence[ChatMessage]) -> set[int]:
    system = {index for index, message in enumerate(messages) if message.role in {"system", "developer"}}
    return system | {_last_question(messages)} | set(range(_last_group(messages), len(messages)))


def _cuts(messages: Sequence[ChatMessage]) -> list[int]:
    question = _last_question(messages)
    later = [
        index
        for index, message in enumerate(messages[: _last_group(messages) + 1])
        if (message.role == "user" if index <= question else message.role != "tool") and index > 0
    ]
    return [0, *later]


def _last_question(messages: Sequence[ChatMessage]) -> int:
    return max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)


def _last_group(messages: Sequence[ChatMessage]) -> int:
    """Where the last message begins: with the calls that it answers."""
    index = len(messages) - 1
    while index > 0 and messages[index].role == "tool":
        index -= 1
    return max(index, 0)
