"""Bodies of OpenAI's routes, and the GenerateRequests that they ask for.

Beyond OpenAI's own fields these routes honour top_k, min_p, typical_p, repeat_penalty and keep_alive.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec

from services.gateway.dialects.bodies import BodyDecoder, InvalidField
from services.gateway.dialects.options import run_options
from services.gateway.ticket import Target, Ticket
from services.protocol.errors import BadRequest, UnsupportedCapability
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt, TextPrompt

DEFAULTS: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 40, "repeat_last_n": 64}

_EFFORTS = ("minimal", "low", "medium", "high", "max", "xhigh", "ultra")
_IMAGE_PARTS = ("image_url", "input_audio")


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _GenerationBody(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    keep_alive: Any = None

    @property
    def streamed(self) -> bool:
        return self.stream is True

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True


class ContentPart(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    image_url: Any = None


class Message(msgspec.Struct):
    role: str | None = None
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None


class Reasoning(msgspec.Struct):
    effort: str | None = None


class ChatBody(_GenerationBody):
    messages: list[Message] | None = None
    max_completion_tokens: int | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    reasoning_effort: str | None = None
    reasoning: Reasoning | None = None


class CompletionBody(_GenerationBody):
    prompt: str | list[Any] | None = None
    suffix: str | None = None
    logprobs: int | None = None


decode_chat = BodyDecoder(ChatBody)
decode_completion = BodyDecoder(CompletionBody)


def chat_request(body: ChatBody, ticket: Ticket) -> GenerateRequest:
    """Raises UnsupportedCapability and BadRequest. `body.messages` is not empty."""
    target = ticket.target
    messages = body.messages or []
    target.require("chat")
    _refuse_unbuilt_chat(body, target)
    dialogue = tuple(ChatMessage(message.role or "", _text_of(message, target)) for message in messages)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return _request(body, ticket, ChatPrompt(target.with_system(dialogue)), limit)


def completion_request(body: CompletionBody, ticket: Ticket) -> GenerateRequest:
    """Raises likewise. As with Ollama an empty prompt loads the model and generates nothing."""
    target = ticket.target
    target.require("completion", called="generate")
    _refuse_choices(body)
    if body.suffix:
        raise target.unsupported("insert")
    if body.logprobs:
        _unbuilt("logprobs")
    prompt = _single_prompt(body.prompt)
    return _request(body, ticket, TextPrompt(prompt), body.max_tokens if prompt else 0)


def _request(body: _GenerationBody, ticket: Ticket, prompt: Prompt, limit: int | None) -> GenerateRequest:
    asked = {
        "num_predict": limit,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "typical_p": body.typical_p,
        "repeat_penalty": body.repeat_penalty,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "seed": body.seed,
        "stop": body.stop,
    }
    options = run_options(DEFAULTS, ticket.target.version.parameters, asked)
    return GenerateRequest(
        id=ticket.id,
        version=ticket.target.version.digest,
        gateway=ticket.gateway,
        caller=ticket.caller,
        prompt=prompt,
        sampling=options.sampling,
        stopping=options.stopping,
    )


def _text_of(message: Message, target: Target) -> str:
    """Several text parts are paragraphs of one message, as Ollama's templates render them."""
    if isinstance(message.content, list):
        return "\n\n".join(_part_text(part, target) for part in message.content)
    if message.content is None:
        raise BadRequest("invalid message content type: <nil>")
    return message.content


def _part_text(part: ContentPart, target: Target) -> str:
    if part.type == "text":
        return part.text or ""
    if part.type not in _IMAGE_PARTS:
        raise BadRequest("invalid message format")
    url = part.image_url.get("url") if isinstance(part.image_url, dict) else part.image_url
    if isinstance(url, str) and url.startswith(("http://", "https://")):
        raise BadRequest("image URLs are not currently supported, please use base64 encoded data instead")
    raise target.unsupported("vision" if part.type == "image_url" else "audio")


def _single_prompt(prompt: str | list[Any] | None) -> str:
    match prompt:
        case None | []:
            return ""
        case str(text) | [str(text)]:
            return text
        case _:
            raise InvalidField("prompt: only a single string is supported by this server yet", field="prompt")


def _refuse_unbuilt_chat(body: ChatBody, target: Target) -> None:
    _refuse_choices(body)
    if body.tools or any(message.tool_calls for message in body.messages or ()):
        raise target.unsupported("tools")
    if body.logprobs:
        _unbuilt("logprobs")
    if body.response_format and body.response_format.get("type") != "text":
        _unbuilt("response_format")
    effort = body.reasoning_effort or (body.reasoning.effort if body.reasoning else None) or "none"
    if effort in _EFFORTS:
        raise UnsupportedCapability(f'"{target.asked}" does not support thinking')
    if effort != "none":
        raise InvalidField(
            f'invalid reasoning value: \'{effort}\' (must be "high", "medium", "low", "max", or "none")',
            field="reasoning_effort",
        )


def _refuse_choices(body: _GenerationBody) -> None:
    if body.n is not None and body.n != 1:
        _unbuilt("n")


def _unbuilt(field: str) -> NoReturn:
    raise InvalidField(f"{field}: not supported by this server yet", field=field)
