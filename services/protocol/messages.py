"""What a request is on its way from the gateway to a worker, and what comes back.

Gateway → queue → worker:   GenerateRequest
gateway → worker's inbox:   Cancel, Wake
worker → gateway:           StepReply, one per engine step and gateway, holding the events of all that gateway's sequences:
                            Started, Frame*, then exactly one of Finished or Failed for each request.

Every event carries the epoch of its claim and a sequence number that counts the request's events from 0, so that a reader
drops what a superseded claim still sends and sees where something is missing.
"""

from __future__ import annotations

import enum
import secrets
import time
from typing import Literal

import msgspec


class FinishReason(enum.StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    ABORT = "abort"
    ERROR = "error"


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str


class ChatPrompt(msgspec.Struct, frozen=True, tag="chat"):
    """Rendered by the worker with the model's own template."""

    messages: tuple[ChatMessage, ...]


class TextPrompt(msgspec.Struct, frozen=True, tag="text"):
    """Tokenized as it stands."""

    text: str


Prompt = ChatPrompt | TextPrompt


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is drawn. The defaults leave the model's distribution as it is; dialects bring their own.

    `top_k` 0, `top_p` 1, `min_p` 0, `typical_p` 1, `repeat_penalty` 1, and penalties of 0 are off. `repeat_last_n` is the
    window of the penalties in tokens: 0 none, -1 the whole context. `temperature` 0 takes the likeliest token. `seed` None
    draws a fresh seed.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None


class StopConditions(msgspec.Struct, frozen=True, omit_defaults=True):
    """`max_tokens` None: until the model ends or the context is full; 0: load the model, generate nothing."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


class GenerateRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One generation, in no dialect.

    `version` is a manifest digest (64 hex digits), `gateway` whose reply stream wants the events, `caller` an API key's id.
    `context` holds token ids that precede the rendered prompt (Ollama's `context`). `overflow` says what happens to a prompt
    longer than the context: refuse it, or drop the oldest messages (of a text: its oldest tokens).
    """

    id: str
    version: str
    gateway: str
    caller: str
    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    stopping: StopConditions = StopConditions()
    context: tuple[int, ...] = ()
    overflow: Literal["refuse", "truncate"] = "refuse"
    return_prompt_ids: bool = False


class Usage(msgspec.Struct, frozen=True):
    """Tokens. `cached_tokens` are those of `prompt_tokens` that a slot still held."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Timings(msgspec.Struct, frozen=True):
    """Nanoseconds in the engine: claim to first token, first token to last."""

    prefill_ns: int
    decode_ns: int


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The request has its slot; `prompt_ids` is empty unless the request asked for it."""

    request: str
    epoch: int
    seq: int
    prompt_tokens: int
    cached_tokens: int
    prompt_ids: tuple[int, ...] = ()


class Frame(msgspec.Struct, frozen=True, tag="frame"):
    """Tokens that were generated and the text they release; `text` is empty while the output pipeline holds it back."""

    request: str
    epoch: int
    seq: int
    token_ids: tuple[int, ...]
    text: str


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    request: str
    epoch: int
    seq: int
    reason: FinishReason
    usage: Usage
    timings: Timings


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """`code` names a class of services.protocol.errors."""

    request: str
    epoch: int
    seq: int
    code: str
    message: str


Event = Started | Frame | Finished | Failed


class StepReply(msgspec.Struct, frozen=True):
    """One entry of a gateway's reply stream. `worker` is empty where the registry answers for a model that cannot load."""

    worker: str
    events: tuple[Event, ...]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """The client is gone: free the slot within one engine step."""

    request: str


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """A request may be waiting: claim."""


Control = Cancel | Wake


class Claim(msgspec.Struct, frozen=True):
    request: GenerateRequest
    epoch: int


def new_id() -> str:
    """An identifier that sorts by the time of its making: 12 hex digits of milliseconds, then 20 random ones."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
