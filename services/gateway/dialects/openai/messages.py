"""Chat messages in OpenAI's form."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from services.gateway.dialects.bodies import InvalidField, json_text
from services.gateway.dialects.dialogue import known_role
from services.gateway.dialects.limits import CALLS, PARTS, Id, Name, Text
from services.gateway.requests.ticket import Target
from services.protocol.prompts import ChatMessage, ToolCall

_BINARY_PARTS = {"image_url": "vision", "input_audio": "audio", "file": "files"}
#: The field that holds the text, by part type. Clients of /v1/responses send the last two types.
_TEXT_FIELDS = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}


class ContentPart(msgspec.Struct):
    type: Name | None = None
    text: Text | None = None
    refusal: Text | None = None
    image_url: Any = None


class CalledFunction(msgspec.Struct):
    """`arguments` is JSON text, but some clients send the object itself."""

    name: Name | None = None
    arguments: Text | dict[str, Any] | None = None


class CallBody(msgspec.Struct):
    id: Id | None = None
    function: CalledFunction | None = None


class Message(msgspec.Struct):
    """`reasoning_content` is another name for `reasoning`. `refusal` replaces `content`. `function_call` is the older form of
    `tool_calls`; its result has the role `function`."""

    role: Name | None = None
    content: Text | Annotated[list[ContentPart], PARTS.length] | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None
    refusal: Text | None = None
    function_call: CalledFunction | None = None
    tool_calls: Annotated[list[CallBody], CALLS.length] | None = None
    tool_call_id: Id | None = None
    name: Name | None = None


def dialogue(messages: list[Message], target: Target) -> tuple[ChatMessage, ...]:
    """`messages` is not empty. Raises BadRequest and UnsupportedCapability."""
    return target.with_system(tuple(_message(message, f"messages[{index}]", target) for index, message in enumerate(messages)))


def _message(message: Message, field: str, target: Target) -> ChatMessage:
    role = known_role("tool" if message.role == "function" else message.role or "", field=f"{field}.role")
    calls = tuple(_call(call, f"{field}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls or ()))
    if message.function_call is not None:
        calls += (_called(message.function_call, "", f"{field}.function_call"),)
    return ChatMessage(
        role=role,
        content=_content(message, f"{field}.content", target),
        reasoning=message.reasoning or message.reasoning_content or "",
        tool_calls=calls,
        tool_call_id=message.tool_call_id or "",
        tool_name=(message.name or "") if role == "tool" else "",
    )


def _call(call: CallBody, field: str) -> ToolCall:
    return _called(call.function or CalledFunction(), call.id or "", f"{field}.function")


def _called(function: CalledFunction, id: str, field: str) -> ToolCall:
    if not function.name:
        raise InvalidField(f"{field}.name: is required", field=f"{field}.name")
    arguments = function.arguments
    text = json_text(arguments, field=f"{field}.arguments") if isinstance(arguments, dict) else arguments
    return ToolCall(id, function.name, text or "{}")


def _content(message: Message, field: str, target: Target) -> str:
    """Joins text parts as paragraphs of one message, as Ollama's templates render them."""
    if isinstance(message.content, list):
        return "\n\n".join(_part_text(part, f"{field}[{index}]", target) for index, part in enumerate(message.content))
    if message.content is None and not _has_other_content(message):
        raise InvalidField("invalid message content type: <nil>", field=field)
    return message.content or message.refusal or ""


def _has_other_content(message: Message) -> bool:
    """Whether the message has anything that an answer may contain instead of content."""
    said = message.tool_calls, message.function_call, message.refusal, message.reasoning, message.reasoning_content
    return any(said)


def _part_text(part: ContentPart, field: str, target: Target) -> str:
    if part.type in _TEXT_FIELDS:
        return getattr(part, _TEXT_FIELDS[part.type]) or ""
    if part.type not in _BINARY_PARTS:
        raise InvalidField("invalid message format", field=f"{field}.type")
    url = part.image_url.get("url") if isinstance(part.image_url, dict) else part.image_url
    if isinstance(url, str) and url.startswith(("http://", "https://")):
        raise InvalidField(
            "image URLs are not currently supported, please use base64 encoded data instead", field=f"{field}.image_url"
        )
    raise target.unsupported(_BINARY_PARTS[part.type], field=field)
