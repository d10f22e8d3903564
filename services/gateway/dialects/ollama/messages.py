"""Chat messages in Ollama's form."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from services.gateway.dialects.bodies import InvalidField, json_text
from services.gateway.dialects.dialogue import known_role
from services.gateway.dialects.limits import CALLS, IMAGES, Id, Name, Text
from services.gateway.requests.ticket import Target
from services.protocol.prompts import ChatMessage, ToolCall


class CalledFunction(msgspec.Struct):
    name: Name | None = None
    arguments: dict[str, Any] | None = None


class CallBody(msgspec.Struct):
    id: Id | None = None
    function: CalledFunction | None = None


class Message(msgspec.Struct):
    """`name` is the older name of `tool_name`."""

    role: Name | None = None
    content: Text | None = None
    thinking: Text | None = None
    images: Annotated[list[Any], IMAGES.length] | None = None
    tool_calls: Annotated[list[CallBody], CALLS.length] | None = None
    tool_name: Name | None = None
    tool_call_id: Id | None = None
    name: Name | None = None


def dialogue(messages: list[Message], target: Target) -> tuple[ChatMessage, ...]:
    """`messages` is not empty. Raises BadRequest and UnsupportedCapability."""
    if any(message.images for message in messages):
        raise target.unsupported("vision")
    return target.with_system(tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages)))


def _message(message: Message, field: str) -> ChatMessage:
    calls = tuple(_call(call, f"{field}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls or ()))
    role = known_role((message.role or "").lower(), field=f"{field}.role")
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
    arguments = json_text(function.arguments or {}, field=f"{field}.function.arguments")
    return ToolCall(call.id or "", function.name, arguments)
