"""What every dialect does with the messages of a chat once they are in no dialect any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from services.protocol.prompts import ChatMessage


def with_call_names(messages: Iterable[ChatMessage]) -> Iterator[ChatMessage]:
    """A tool's answer names the call or the tool, and some templates want what is missing: it is that of the call before it."""
    names: dict[str, str] = {}
    for message in messages:
        names.update((call.id, call.name) for call in message.tool_calls if call.id)
        if message.role == "tool" and not message.tool_name and message.tool_call_id in names:
            yield msgspec.structs.replace(message, tool_name=names[message.tool_call_id])
        else:
            yield message


def is_unfinished(messages: tuple[ChatMessage, ...]) -> bool:
    """The last message is the beginning of the answer."""
    return messages[-1].role == "assistant" and not messages[-1].tool_calls
