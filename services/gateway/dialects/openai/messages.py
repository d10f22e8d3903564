"""Messages of a chat as OpenAI writes them."""

from __future__ import annotations

from typing import Any

import msgspec

from services.gateway.dialects.bodies import InvalidField
from services.gateway.ticket import Target
from services.protocol.errors import BadRequest
from services.protocol.prompts import ChatMessage, ToolCall

_BINARY_PARTS = {"image_url": "vision", "input_audio": "audio"}


class ContentPart(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    image_url: Any = None


class CalledFunction(msgspec.Struct):
    """`arguments` is JSON text; some clients send the object itself."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CallBody(msgspec.Struct):
    id: str | None = None
    function: CalledFunction | None = None


class Message(msgspec.Struct):
    """`reasoning` is also known as `reasoning_content`."""

    role: str | None = None
    content: str | list[ContentPart] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None
    name: str | None = None


def dialogue(messages: list[Message], target: Target) -> tuple[ChatMessage, ...]:
    """`messages` is not empty. Raises BadRequest and UnsupportedCapability."""
    return target.with_system(tuple(_message(message, f"messages[{index}]", target) for index, message in enumerate(messages)))


def _message(message: Message, field: str, target: Target) -> ChatMessage:
    calls = tuple(_call(call, f"{field}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls or ()))
    return ChatMessage(
        role=message.role or "",
        content=_content(message, target),
        reasoning=message.reasoning or message.reasoning_content or "",
        tool_calls=calls,
        tool_call_id=message.tool_call_id or "",
        tool_name=(message.name or "") if message.role == "tool" else "",
    )


def _call(call: CallBody, field: str) -> ToolCall:
    function = call.function
    if function is None or not function.name:
        raise InvalidField(f"{field}.function.name: is required", field=f"{field}.function.name")
    arguments = function.arguments
    text = msgspec.json.encode(arguments).decode() if isinstance(arguments, dict) else arguments
    return ToolCall(call.id or "", function.name, text or "{}")


def _content(message: Message, target: Target) -> str:
    """Several text parts are paragraphs of one message, as Ollama's templates render them."""
    if isinstance(message.content, list):
        return "\n\n".join(_part_text(part, target) for part in message.content)
    if message.content is None and not message.tool_calls:
        raise BadRequest("invalid message content type: <nil>")
    return message.content or ""


def _part_text(part: ContentPart, target: Target) -> str:
    if part.type == "text":
        return part.text or ""
    if part.type not in _BINARY_PARTS:
        raise BadRequest("invalid message format")
    url = part.image_url.get("url") if isinstance(part.image_url, dict) else part.image_url
    if isinstance(url, str) and url.startswith(("http://", "https://")):
        raise BadRequest("image URLs are not currently supported, please use base64 encoded data instead")
    raise target.unsupported(_BINARY_PARTS[part.type])
