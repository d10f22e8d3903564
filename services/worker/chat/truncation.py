"""Shortens a chat that does not fit the context: drops messages first, then cuts the start of the longest ones. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from services.protocol.prompts import ChatMessage

Messages = tuple[ChatMessage, ...]


def possible_cuts(messages: Sequence[ChatMessage]) -> list[int]:
    """The indexes at which a shortened chat may start, in ascending order. Up to the last question only whole exchanges are
    dropped, because many templates want the user to speak first. A call and its results stay together."""
    question = _last_question(messages)
    later = [
        index
        for index, message in enumerate(messages[: _last_group(messages) + 1])
        if (message.role == "user" if index <= question else message.role != "tool") and index > 0
    ]
    return [0, *later]


def shortened(messages: Sequence[ChatMessage], cut: int) -> Messages:
    """The chat from message `cut` on. System messages, the last question and the last message are always kept."""
    anchors = _anchors(messages)
    return tuple(message for index, message in enumerate(messages) if index >= cut or index in anchors)


def shortest_ends(messages: Messages, characters: int) -> Messages:
    """The messages, each with at most the last `characters` of its content."""
    return tuple(
        msgspec.structs.replace(message, content=message.content[len(message.content) - characters :])
        if len(message.content) > characters
        else message
        for message in messages
    )


def longest_fitting(fits: Callable[[int], bool], *, start: int) -> int:
    """The largest number that `fits`, to within 1 %; 0 if none does. All numbers below one that fits must fit too. A try costs
    more the larger the number is, so no number above twice the result (or above `start`) is tried."""
    low, high = 0, max(1, start)
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _anchors(messages: Sequence[ChatMessage]) -> set[int]:
    system = {index for index, message in enumerate(messages) if message.role in {"system", "developer"}}
    return system | {_last_question(messages)} | set(range(_last_group(messages), len(messages)))


def _last_question(messages: Sequence[ChatMessage]) -> int:
    return max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)


def _last_group(messages: Sequence[ChatMessage]) -> int:
    """The index of the last message or, if that is a tool's result, of the message with the calls."""
    index = len(messages) - 1
    while index > 0 and messages[index].role == "tool":
        index -= 1
    return max(index, 0)
