"""Bodies of Ollama's routes, and the GenerateRequests that they ask for."""

from __future__ import annotations

from typing import Any

import msgspec

from services.gateway.dialects.bodies import BodyDecoder
from services.gateway.dialects.options import RunOptions, run_options
from services.gateway.ticket import Target, Ticket
from services.protocol.errors import BadRequest, UnsupportedCapability
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt, TextPrompt
from services.protocol.sampling import StopConditions

DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repeat_last_n": 64}

_THINK_LEVELS = ("low", "medium", "high", "max")
_MAX_TOKEN_ID = 2**31 - 1


class NamedBody(msgspec.Struct):
    """Ollama's command line sends `model` empty and the name in the older field."""

    model: str | None = None
    name: str | None = None

    @property
    def asked(self) -> str:
        return self.model or self.name or ""


class _GenerationBody(NamedBody):
    stream: bool | None = None
    format: Any = None
    keep_alive: Any = None
    options: dict[str, Any] | None = None
    think: Any = None
    truncate: bool | None = None
    logprobs: bool | None = None

    @property
    def streamed(self) -> bool:
        return self.stream is not False


class Message(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    images: list[Any] | None = None
    tool_calls: list[Any] | None = None


class ChatBody(_GenerationBody):
    messages: list[Message] | None = None
    tools: list[Any] | None = None


class GenerateBody(_GenerationBody):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[Any] | None = None


class PullBody(NamedBody):
    """`as` is ours: the name that the model gets here."""

    stream: bool | None = None
    as_: str | None = msgspec.field(default=None, name="as")

    @property
    def streamed(self) -> bool:
        return self.stream is not False


decode_chat = BodyDecoder(ChatBody)
decode_generate = BodyDecoder(GenerateBody)
decode_pull = BodyDecoder(PullBody)
decode_named = BodyDecoder(NamedBody)


def chat_request(body: ChatBody, ticket: Ticket) -> GenerateRequest:
    """Raises UnsupportedCapability, BadRequest and InvalidOption. `body.messages` is not empty."""
    target = ticket.target
    messages = body.messages or []
    target.require("chat")
    _refuse_unbuilt(body, target)
    if body.tools or any(message.tool_calls for message in messages):
        raise target.unsupported("tools")
    if any(message.images for message in messages):
        raise target.unsupported("vision")
    dialogue = tuple(ChatMessage((message.role or "").lower(), message.content or "") for message in messages)
    return _request(body, ticket, ChatPrompt(target.with_system(dialogue)))


def generate_request(body: GenerateBody, ticket: Ticket) -> GenerateRequest:
    """Raises likewise. `body.prompt` is not empty."""
    target = ticket.target
    target.require("completion", called="generate")
    _refuse_unbuilt(body, target)
    if body.suffix:
        raise target.unsupported("insert")
    if body.images:
        raise target.unsupported("vision")
    if body.raw and (body.template or body.system or body.context):
        raise BadRequest("raw mode does not support template, system, or context")
    if body.template:
        raise BadRequest("template: not supported by this server yet")
    context = tuple(body.context or ())
    if not all(0 <= token <= _MAX_TOKEN_ID for token in context):
        raise BadRequest("context: holds a number that is no token id")
    return _request(body, ticket, _generate_prompt(body, target), context=context, return_prompt_ids=not body.raw)


def load_request(ticket: Ticket) -> GenerateRequest:
    """Brings the model up and generates nothing."""
    return GenerateRequest(
        id=ticket.id,
        version=ticket.target.version.digest,
        gateway=ticket.gateway,
        caller=ticket.caller,
        prompt=TextPrompt(""),
        stopping=StopConditions(max_tokens=0),
    )


def _request(
    body: _GenerationBody,
    ticket: Ticket,
    prompt: Prompt,
    *,
    context: tuple[int, ...] = (),
    return_prompt_ids: bool = False,
) -> GenerateRequest:
    options: RunOptions = run_options(DEFAULTS, ticket.target.version.parameters, body.options or {})
    return GenerateRequest(
        id=ticket.id,
        version=ticket.target.version.digest,
        gateway=ticket.gateway,
        caller=ticket.caller,
        prompt=prompt,
        sampling=options.sampling,
        stopping=options.stopping,
        context=context,
        overflow="refuse" if body.truncate is False else "truncate",
        return_prompt_ids=return_prompt_ids,
    )


def _generate_prompt(body: GenerateBody, target: Target) -> Prompt:
    prompt = body.prompt or ""
    if body.raw:
        return TextPrompt(prompt)
    system = body.system or target.version.system
    if not target.can("chat"):
        return TextPrompt(system + prompt)
    user = ChatMessage("user", prompt)
    return ChatPrompt((ChatMessage("system", system), user) if system else (user,))


def _refuse_unbuilt(body: _GenerationBody, target: Target) -> None:
    if _thinks(body.think):
        raise UnsupportedCapability(f'"{target.asked}" does not support thinking')
    if body.logprobs:
        raise BadRequest("logprobs: not supported by this server yet")
    if body.format in (None, ""):
        return
    if body.format != "json" and not isinstance(body.format, dict):
        shown = msgspec.json.encode(body.format).decode()
        raise BadRequest(f'invalid format: {shown}; expected "json" or a valid JSON Schema object')
    raise BadRequest("format: not supported by this server yet")


def _thinks(think: object) -> bool:
    if think is None or isinstance(think, bool):
        return bool(think)
    if think in _THINK_LEVELS:
        return True
    shown = think if isinstance(think, str) else msgspec.json.encode(think).decode()
    raise BadRequest(f'invalid think value: "{shown}" (must be "high", "medium", "low", "max", true, or false)')
