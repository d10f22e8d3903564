"""Checks on chat messages that no longer depend on a dialect."""

from __future__ import annotations

from services.gateway.dialects.bodies import InvalidField
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt

#: Chat templates write the role between control tokens, so callers can't make up their own.
ROLES = ("system", "developer", "user", "assistant", "tool")


def known_role(role: str, *, field: str) -> str:
    """Returns `role`. Raises InvalidField if it is unknown."""
    if role not in ROLES:
        raise InvalidField(f"{field}: must be one of {', '.join(ROLES)}", field=field)
    return role


def is_unfinished(messages: tuple[ChatMessage, ...]) -> bool:
    """Whether the last message is the start of the answer."""
    return messages[-1].role == "assistant" and not messages[-1].tool_calls


def requires_call(prompt: Prompt) -> bool:
    """Whether the answer must be a tool call."""
    return isinstance(prompt, ChatPrompt) and prompt.tool_choice.mode == "required"
