"""Request bodies of OpenAI's routes, and their conversion to GenerateRequest.

Besides OpenAI's fields, the routes accept Ollama's and llama-server's names for the worker's other options, and the fields that
vLLM's clients send.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from services.gateway.dialects.bodies import BodyDecoder, InvalidField, check_limit, check_portable, token_ids
from services.gateway.dialects.dialogue import is_unfinished
from services.gateway.dialects.limits import BREAKERS, MESSAGES, STOPS, TEXTS, TOKENS, TOOLS, WORDS, Name, Text
from services.gateway.dialects.openai.constraints import ConstraintFields, constraint_of
from services.gateway.dialects.openai.messages import Message, dialogue
from services.gateway.dialects.openai.reasoning import Reasoning, thinking_of
from services.gateway.dialects.options import run_options
from services.gateway.dialects.tools import ToolBody, toolbox
from services.gateway.requests.ticket import Ticket
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt, TextPrompt
from services.protocol.waiting import Priority

DEFAULTS: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 40, "repeat_last_n": 64}

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20

_TIERS = {"flex": Priority.BATCH, "default": Priority.NORMAL, "priority": Priority.INTERACTIVE}


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _GenerationBody(ConstraintFields):
    """Fields shared by both routes. A field with the name of a run option sets that option."""

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: Text | Annotated[list[Text], STOPS.length] | None = None
    n: int | None = None
    best_of: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: Annotated[list[Text], BREAKERS.length] | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    logit_bias: Any = None
    keep_alive: Any = None
    service_tier: Name | None = None
    cache_salt: Name | None = None
    priority: int | None = None

    @property
    def streamed(self) -> bool:
        return self.stream is True

    @property
    def requested_priority(self) -> Priority | None:
        """From vLLM's `priority` (lower is more urgent, 0 is normal), or else from OpenAI's `service_tier`; None if neither
        maps to one."""
        if self.priority is not None:
            return Priority.NORMAL if self.priority == 0 else Priority.BATCH if self.priority > 0 else Priority.INTERACTIVE
        return _TIERS.get(self.service_tier or "")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True


class ChatBody(_GenerationBody):
    messages: Annotated[list[Message], MESSAGES.length] | None = None
    max_completion_tokens: int | None = None
    tools: Annotated[list[ToolBody], TOOLS.length] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: Name | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    modalities: Annotated[list[Name], WORDS.length] | None = None


class CompletionBody(_GenerationBody):
    prompt: Text | Annotated[list[Any], TOKENS.length] | None = None
    suffix: Text | None = None
    echo: bool | None = None
    logprobs: int | None = None

    @property
    def echoed(self) -> str:
        """The prompt, if the answer should start with it."""
        return _given(self.prompt).text if self.echo else ""


class _Given(msgspec.Struct, frozen=True):
    """A completion's prompt, as text or as token ids."""

    text: str = ""
    token_ids: tuple[int, ...] = ()


decode_chat = BodyDecoder(ChatBody)
decode_completion = BodyDecoder(CompletionBody)


def chat_request(body: ChatBody, ticket: Ticket) -> GenerateRequest:
    """`body.messages` must not be empty. Raises UnsupportedCapability and BadRequest."""
    target = ticket.target
    target.require("chat")
    _check_modalities(body.modalities or [])
    template_kwargs = body.chat_template_kwargs or {}
    check_portable(template_kwargs, field="chat_template_kwargs")
    box = toolbox(body.tools, body.tool_choice)
    thinking = thinking_of(body.reasoning_effort, body.reasoning, template_kwargs)
    messages = dialogue(body.messages or [], target)
    prompt = ChatPrompt(
        messages,
        tools=box.tools,
        tool_choice=box.choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        thinking=thinking.on(target),
        reasoning_effort=thinking.effort,
        continue_final=_continues(body, messages),
        template_kwargs=template_kwargs,
    )
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return _request(body, ticket, prompt, limit=limit, top_logprobs=_chat_logprobs(body))


def completion_request(body: CompletionBody, ticket: Ticket) -> GenerateRequest:
    """As with Ollama, an empty prompt loads the model and generates nothing. Raises UnsupportedCapability and BadRequest."""
    target = ticket.target
    target.require("completion", called="generate")
    if body.suffix and not target.can("insert"):
        raise target.unsupported("insert", field="suffix")
    given = _given(body.prompt)
    if body.echo and (given.token_ids or body.logprobs is not None):
        raise InvalidField("echo: needs a text prompt, and cannot be combined with logprobs", field="echo")
    return _request(
        body,
        ticket,
        TextPrompt(given.text, body.suffix or ""),
        limit=body.max_tokens if given != _Given() else 0,
        top_logprobs=_checked_top(body.logprobs, "logprobs"),
        context=given.token_ids,
    )


def _request(
    body: _GenerationBody,
    ticket: Ticket,
    prompt: Prompt,
    *,
    limit: int | None,
    top_logprobs: int | None,
    context: tuple[int, ...] = (),
) -> GenerateRequest:
    asked = msgspec.structs.asdict(body) | {"num_predict": limit}
    if body.repeat_penalty is None:
        asked["repeat_penalty"] = body.repetition_penalty
    options = run_options(DEFAULTS, ticket.target.version.parameters, asked)
    if options.stopping.max_tokens is not None and options.stopping.min_tokens > options.stopping.max_tokens:
        raise InvalidField("min_tokens: must not be greater than max_tokens", field="min_tokens")
    return GenerateRequest(
        id=ticket.id,
        version=ticket.target.version.digest,
        gateway=ticket.gateway,
        caller=ticket.caller,
        prompt=prompt,
        sampling=options.sampling,
        stopping=options.stopping,
        context=context,
        constraint=constraint_of(body),
        n=_choices(body),
        top_logprobs=top_logprobs,
        isolation=body.cache_salt or "",
    )


def _check_modalities(modalities: list[str]) -> None:
    if others := [modality for modality in modalities if modality != "text"]:
        raise InvalidField(f"modalities: answers are text; {others[0][:20]!r} is not supported", field="modalities")


def _choices(body: _GenerationBody) -> int:
    n = 1 if body.n is None else body.n
    if not 1 <= n <= MAX_CHOICES:
        raise InvalidField(f"n: must be between 1 and {MAX_CHOICES}", field="n")
    if body.best_of is not None and body.best_of != n:
        raise InvalidField("best_of: must be equal to n, because every choice is returned", field="best_of")
    return n


def _chat_logprobs(body: ChatBody) -> int | None:
    top = _checked_top(body.top_logprobs, "top_logprobs")
    if top and not body.logprobs:
        raise InvalidField("top_logprobs: needs logprobs to be true", field="top_logprobs")
    return (top or 0) if body.logprobs else None


def _checked_top(top: int | None, field: str) -> int | None:
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise InvalidField(f"{field} must be between 0 and {MAX_TOP_LOGPROBS}", field=field)
    return top


def _continues(body: ChatBody, messages: tuple[ChatMessage, ...]) -> bool:
    """Whether to continue the last message. As with Ollama and llama-server, a final assistant message is continued; vLLM's
    `continue_final_message` can turn that off."""
    if body.continue_final_message and not is_unfinished(messages):
        raise InvalidField(
            "continue_final_message: the last message must be an assistant message without tool calls",
            field="continue_final_message",
        )
    return body.continue_final_message is not False and is_unfinished(messages)


def _given(prompt: str | list[Any] | None) -> _Given:
    match prompt:
        case None | []:
            return _Given()
        case str(text) | [str(text)]:
            check_limit(TEXTS, len(text), field="prompt")
            return _Given(text)
        case [[int(), *_] as ids] | ([int(), *_] as ids):
            return _Given(token_ids=token_ids(ids, field="prompt"))
        case _:
            raise InvalidField("prompt: must be one text or its token ids; send one request for each prompt", field="prompt")
