"""The messages of a chat, once they are in no dialect any more."""

from __future__ import annotations

from services.protocol.prompts import ChatMessage


def is_unfinished(messages: tuple[ChatMessage, ...]) -> bool:
    """The last message is the beginning of the answer."""
    return messages[-1].role == "assistant" and not messages[-1].tool_calls
