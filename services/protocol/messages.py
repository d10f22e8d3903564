"""What a request is on its way from the gateway to a worker, and what comes back.

Gateway → queue → worker:   GenerateRequest, EmbedRequest, RerankRequest
gateway → worker's inbox:   Cancel, Wake
registry → worker's inbox:  Crash
worker → gateway:           StepReply, one per engine step and gateway, holding the events of all that gateway's sequences:
                            Started, then Frame* or Embedded*, then exactly one of Finished, Failed or HandedOver for each claim.

Every event carries the epoch of its claim and a sequence number that counts the request's events from 0, so that a reader
drops what a superseded claim still sends and sees where something is missing.
"""

from __future__ import annotations

import enum
import secrets
import time
from typing import Literal

import msgspec

from services.protocol.prompts import Prompt
from services.protocol.sampling import Constraint, SamplingParams, StopConditions


class FinishReason(enum.StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    ABORT = "abort"
    ERROR = "error"


#: What happens to an input longer than the context.
Overflow = Literal["refuse", "truncate"]


class GenerateRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="generate"):
    """`n` generations from one prompt, in no dialect.

    `version` is a manifest digest (64 hex digits), `gateway` whose reply stream wants the events, `caller` an API key's id.
    `context` holds token ids that precede the rendered prompt (Ollama's `context`). `overflow` `truncate` drops the oldest
    messages of a prompt longer than the context (of a text: its oldest tokens). `shift`: an answer that fills the context goes
    on, by dropping the older half of what lies behind the first `keep_tokens` (-1: the whole prompt). `top_logprobs` None: no
    logprobs; 0: those of the chosen tokens; else also of so many of the likeliest. `traceparent` (W3C) is the span that the worker's is a
    part of, empty where none is made; so it is of the other requests.
    """

    id: str
    version: str
    gateway: str
    caller: str
    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    stopping: StopConditions = StopConditions()
    context: tuple[int, ...] = ()
    constraint: Constraint | None = None
    n: int = 1
    top_logprobs: int | None = None
    overflow: Overflow = "refuse"
    shift: bool = False
    keep_tokens: int = 0
    return_prompt_ids: bool = False
    traceparent: str = ""


class EmbedRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="embed"):
    """One vector for each of `inputs`, which are texts or token ids. `dimensions` keeps so many leading numbers; `normalize`
    then scales to length 1. `overflow` `truncate` drops the end of an input longer than the context."""

    id: str
    version: str
    gateway: str
    caller: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    normalize: bool = True
    overflow: Overflow = "refuse"
    traceparent: str = ""


class RerankRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="rerank"):
    """One score for each of `documents`: how well it answers `query`."""

    id: str
    version: str
    gateway: str
    caller: str
    query: str
    documents: tuple[str, ...]
    overflow: Overflow = "refuse"
    traceparent: str = ""


Request = GenerateRequest | EmbedRequest | RerankRequest


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


class TokenLogprob(msgspec.Struct, frozen=True):
    """Natural logarithm of a token's probability under the model's own distribution (temperature 1, nothing cut off). `token` is
    its bytes, which may be a part of a character."""

    token: bytes
    logprob: float


class ChosenLogprob(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of a token that was drawn, and of the likeliest at its place, the likeliest first."""

    token: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of the tool call `index`: its first piece brings `id` and `name`, each further one a part of `arguments`, JSON text."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Frame(msgspec.Struct, frozen=True, omit_defaults=True, tag="frame"):
    """Tokens that were generated for one choice and what they release, which may be nothing while the output pipeline holds it
    back. `logprobs` has one entry for each of `token_ids` where the request asked for them. `reason`: the choice
    has ended with this."""

    request: str
    epoch: int
    seq: int
    token_ids: tuple[int, ...]
    text: str
    choice: int = 0
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[ChosenLogprob, ...] = ()
    reason: FinishReason | None = None


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """The vector of one input, as float32 in little-endian order; of a reranked document its one score."""

    request: str
    epoch: int
    seq: int
    index: int
    vector: bytes


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """`reasons` has one entry for each choice; a request without choices (embeddings) has one too."""

    request: str
    epoch: int
    seq: int
    reasons: tuple[FinishReason, ...]
    usage: Usage
    timings: Timings


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """`code` names a class of services.protocol.errors."""

    request: str
    epoch: int
    seq: int
    code: str
    message: str


class HandedOver(msgspec.Struct, frozen=True, tag="handed_over"):
    """The worker drains and gives the request back; another one is to go on where this one stopped."""

    request: str
    epoch: int
    seq: int


Event = Started | Frame | Embedded | Finished | Failed | HandedOver


class StepReply(msgspec.Struct, frozen=True):
    """One entry of a gateway's reply stream. `worker` is empty where the registry answers for a model that cannot load."""

    worker: str
    events: tuple[Event, ...]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """The client is gone: free the slot within one engine step."""

    request: str


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """A request may be waiting: claim."""


class Crash(msgspec.Struct, frozen=True, tag="crash"):
    """End at once, as if killed: an operator wants to see that nobody notices."""


Control = Cancel | Wake | Crash


class Committed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the client has of one choice: its tokens, and why it ended where it has ended."""

    token_ids: tuple[int, ...] = ()
    reason: FinishReason | None = None


class Claim(msgspec.Struct, frozen=True):
    """`committed` has one entry for each choice of a generation that another worker began, and is empty for a fresh request.
    `held_bytes`: so much of the prompt's beginning the queue believed to be in the worker's cache already."""

    request: Request
    epoch: int
    committed: tuple[Committed, ...] = ()
    held_bytes: int = 0


def new_id() -> str:
    """An identifier that sorts by the time of its making: 12 hex digits of milliseconds, then 20 random ones."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
