"""Response objects of /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from typing import Literal

import msgspec

from services.gateway.dialects.openai.logprobs import ChatLogprobs, TextLogprobs
from services.protocol.messages import Usage

encode = msgspec.json.Encoder().encode


class _PromptDetails(msgspec.Struct):
    cached_tokens: int


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int


class UsageObject(msgspec.Struct, omit_defaults=True):
    """`completion_tokens_details` is present only if the model produced reasoning."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails
    completion_tokens_details: _CompletionDetails | None = None


class DeltaFunction(msgspec.Struct, omit_defaults=True):
    arguments: str
    name: str = ""


class DeltaCall(msgspec.Struct, omit_defaults=True):
    """The first delta of a call carries `id`, `type` and the function's name."""

    index: int
    function: DeltaFunction
    id: str = ""
    type: Literal["", "function"] = ""


class Delta(msgspec.Struct, omit_defaults=True):
    role: str = ""
    content: str | None = None
    reasoning: str = ""
    tool_calls: tuple[DeltaCall, ...] = ()


class DeltaChoice(msgspec.Struct, omit_defaults=True):
    index: int
    delta: Delta
    finish_reason: str | None
    logprobs: ChatLogprobs | None = None


class _Function(msgspec.Struct):
    name: str
    arguments: str


class Call(msgspec.Struct):
    id: str
    type: Literal["function"]
    function: _Function

    @classmethod
    def of(cls, id: str, name: str, arguments: str) -> Call:
        return cls(id, "function", _Function(name, arguments or "{}"))


class Message(msgspec.Struct, omit_defaults=True):
    role: str
    content: str | None
    reasoning: str = ""
    tool_calls: tuple[Call, ...] = ()


class MessageChoice(msgspec.Struct, omit_defaults=True):
    index: int
    message: Message
    finish_reason: str | None
    logprobs: ChatLogprobs | None = None


class TextChoice(msgspec.Struct):
    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: str | None


Choice = DeltaChoice | MessageChoice | TextChoice


class Object(msgspec.Struct):
    """A whole answer, or one chunk of a stream. In a chunk, `usage` is absent unless the caller asked for it."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[Choice, ...]
    usage: UsageObject | msgspec.UnsetType | None = msgspec.UNSET


NO_USAGE = UsageObject(0, 0, 0, _PromptDetails(0))


def usage_object(usage: Usage, *, reasoning_tokens: int) -> UsageObject:
    return UsageObject(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        _PromptDetails(usage.cached_tokens),
        _CompletionDetails(reasoning_tokens) if reasoning_tokens else None,
    )
