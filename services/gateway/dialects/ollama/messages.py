"""Messages of a chat as Ollama writes them."""

from __future__ import annotations

from typing import Any

import msgspec

from services.gateway.dialects.bodies import InvalidField
from services.gateway.ticket import Target
from services.protocol.prompts import ChatMessage, ToolCall


class CalledFunction(msgspec.Struct):
    name: str | None = None
    arguments: dict[str, Any] | None = None


class CallBody(msgspec.Struct):
    id: str | None = None
    function: CalledFunction | None = None


class Message(msgspec.Struct):
    """`name` is what `tool_name` was called before."""

    role: str | None = None
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[CallBody] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    name: str | None = None


def dialogue(messages: list[Message], target: Target) -> tuple[ChatMessage, ...]:
    """`messages` is not empty. Raises BadRequest and UnsupportedCapability."""
    if any(message.images for message in messages):
        raise target.unsupported("vision")
    return target.with_system(tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages)))


def _message(message: Message, field: str) -> ChatMessage:
    calls = tuple(_call(call, f"{field}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls or ()))
    role = (message.role or "").lower()
    return ChatMessage(
        role=role,
        content=message.content or "",
        reasoning=message.thinking or "",
        tool_calls=calls,
        tool_call_id=message.tool_call_id or "",
        tool_name=(message.tool_name or message.name or "") if role == "tool" else "",
    )


def _call(call: CallBody, field: str) -> ToolCall:
    function = call.function
    if function is None or not function.name:
        raise InvalidField(f"{field}.function.name: is required", field=f"{field}.function.name")
    return ToolCall(call.id or "", function.name, msgspec.json.encode(function.arguments or {}).decode())
