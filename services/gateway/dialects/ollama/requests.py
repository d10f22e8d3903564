"""Request bodies of Ollama's routes, and their conversion to GenerateRequest."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from services.gateway.dialects.bodies import BodyDecoder, InvalidField, check_portable, excerpt, json_text, token_ids
from services.gateway.dialects.dialogue import is_unfinished
from services.gateway.dialects.limits import IMAGES, MESSAGES, TOKENS, TOOLS, Name, Text
from services.gateway.dialects.ollama.messages import Message, dialogue
from services.gateway.dialects.options import RunOptions, run_options
from services.gateway.dialects.thinking import Thinking
from services.gateway.dialects.tools import ToolBody, toolbox
from services.gateway.requests.ticket import Target, Ticket
from services.protocol.errors import BadRequest
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt, TextPrompt
from services.protocol.sampling import Constraint, JsonObject, JsonSchema, StopConditions

DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repeat_last_n": 64, "num_keep": 4}
MAX_TOP_LOGPROBS = 20

_THINK_LEVELS = ("low", "medium", "high", "max")


class NamedBody(msgspec.Struct):
    """Ollama's command line sends an empty `model` and puts the name into the older field, `name`."""

    model: Name | None = None
    name: Name | None = None

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
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def streamed(self) -> bool:
        return self.stream is not False


class ChatBody(_GenerationBody):
    """`tool_choice` and `parallel_tool_calls` come from OpenAI's API; Ollama ignores them."""

    messages: Annotated[list[Message], MESSAGES.length] | None = None
    tools: Annotated[list[ToolBody], TOOLS.length] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None


class GenerateBody(_GenerationBody):
    prompt: Text | None = None
    suffix: Text | None = None
    system: Text | None = None
    template: Text | None = None
    context: Annotated[list[int], TOKENS.length] | None = None
    raw: bool | None = None
    images: Annotated[list[Any], IMAGES.length] | None = None


class PullBody(NamedBody):
    """`as` is Corral's addition: the name to give the model here."""

    stream: bool | None = None
    as_: Name | None = msgspec.field(default=None, name="as")

    @property
    def streamed(self) -> bool:
        return self.stream is not False


decode_chat = BodyDecoder(ChatBody)
decode_generate = BodyDecoder(GenerateBody)
decode_pull = BodyDecoder(PullBody)
decode_named = BodyDecoder(NamedBody)


def chat_request(body: ChatBody, ticket: Ticket) -> GenerateRequest:
    """`body.messages` must not be empty. Raises UnsupportedCapability and BadRequest."""
    target = ticket.target
    target.require("chat")
    box = toolbox(body.tools, body.tool_choice)
    thinking = thinking_of(body.think)
    messages = dialogue(body.messages or [], target)
    prompt = ChatPrompt(
        messages,
        tools=box.tools,
        tool_choice=box.choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        thinking=thinking.on(target),
        reasoning_effort=thinking.effort,
        continue_final=is_unfinished(messages),
    )
    return _request(body, ticket, prompt)


def generate_request(body: GenerateBody, ticket: Ticket) -> GenerateRequest:
    """`body.prompt` must not be empty. Raises UnsupportedCapability and BadRequest."""
    target = ticket.target
    target.require("completion", called="generate")
    if body.suffix and not target.can("insert"):
        raise target.unsupported("insert")
    if body.images:
        raise target.unsupported("vision")
    if body.raw and (body.template or body.system or body.context):
        raise BadRequest("raw mode does not support template, system, or context")
    if body.template:
        raise BadRequest("template: not supported in a request; the model's own template is used")
    context = token_ids(body.context or [], field="context")
    return _request(body, ticket, _generate_prompt(body, target), context=context, return_prompt_ids=not body.raw)


def requested_context(body: _GenerationBody, target: Target) -> int:
    """The context length that the body asks for (`num_ctx`), in tokens; 0 if any will do.

    At most the length that the model was trained for. Raises InvalidField if the deployment fixes a shorter one.
    """
    version = target.version
    asked = run_options(version.parameters, body.options or {}).context_tokens
    tokens = min(asked, version.trained_context) if version.trained_context else asked
    if version.fixed_context and tokens > version.fixed_context:
        raise InvalidField(
            f"options.num_ctx: {asked} is more than the {version.fixed_context} tokens of context that this model is deployed with "
            "(corral deploy MODEL --context TOKENS)",
            field="options.num_ctx",
        )
    return tokens


def load_request(ticket: Ticket) -> GenerateRequest:
    """A request that loads the model and generates nothing."""
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
        constraint=_constraint(body.format),
        top_logprobs=_top_logprobs(body),
        shift=body.shift is not False,
        keep_tokens=options.keep_tokens,
        overflow="refuse" if body.truncate is False else "truncate",
        return_prompt_ids=return_prompt_ids,
    )


def _generate_prompt(body: GenerateBody, target: Target) -> Prompt:
    prompt, thinking = body.prompt or "", thinking_of(body.think)
    thinks = thinking.on(target)
    if body.raw or body.suffix:
        return TextPrompt(prompt, body.suffix or "")
    system = body.system or target.version.system
    if not target.can("chat"):
        return TextPrompt(system + prompt)
    user = ChatMessage("user", prompt)
    messages = (ChatMessage("system", system), user) if system else (user,)
    return ChatPrompt(messages, thinking=thinks, reasoning_effort=thinking.effort)


def _constraint(asked: object) -> Constraint | None:
    if asked in (None, ""):
        return None
    if asked == "json":
        return JsonObject()
    if not isinstance(asked, dict):
        shown = excerpt(json_text(asked, field="format"))
        raise BadRequest(f'invalid format: {shown}; expected "json" or a valid JSON Schema object')
    check_portable(asked, field="format")
    return JsonSchema(asked)


def _top_logprobs(body: _GenerationBody) -> int | None:
    top = body.top_logprobs or 0
    if not 0 <= top <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
    return top if body.logprobs else None


def thinking_of(think: object) -> Thinking:
    """Reads Ollama's `think` field. Raises BadRequest with Ollama's message."""
    if isinstance(think, bool | None):
        return Thinking(think)
    if isinstance(think, str) and think in _THINK_LEVELS:
        return Thinking(enabled=True, effort=think)
    shown = excerpt(think if isinstance(think, str) else json_text(think, field="think"))
    raise BadRequest(f'invalid think value: "{shown}" (must be "high", "medium", "low", "max", true, or false)')
