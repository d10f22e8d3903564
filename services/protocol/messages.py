"""The messages between gateways and workers.

gateway → queue → worker:   GenerateRequest, EmbedRequest, RerankRequest
queue → worker's inbox:     Cancel, Wake
registry → worker's inbox:  Crash
worker → gateway:           StepReply, which holds the events of one or more engine steps for all of the gateway's requests.
                            The events of a claim are Started, then Frame* or Embedded*, then Finished, Failed or HandedOver.

Every event has the epoch of its claim and a sequence number that counts the claim's events from 0. With these the gateway drops events
of superseded claims and detects missing events.
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


#: How an input that is longer than the context is handled.
Overflow = Literal["refuse", "truncate"]


class GenerateRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="generate"):
    """A request for `n` generations from one prompt, independent of the API dialect.

    - `version`: the manifest digest of the model version (64 hex digits).
    - `gateway`: the id of the gateway that gets the events. `caller`: the id of an API key.
    - `context`: token ids before the rendered prompt (Ollama's `context`).
    - `overflow` `truncate`: if the prompt is longer than the context, its oldest messages are dropped (of a text: its first tokens).
    - `shift`: if an answer fills the context, generation continues without the older half of the tokens after the first `keep_tokens`
      (-1: the whole prompt).
    - `top_logprobs`: None for no logprobs, 0 for those of the chosen tokens, otherwise also how many of the likeliest tokens.
    - `traceparent`: the parent of the worker's trace span (W3C Trace Context), empty if the request is not traced.
    - `isolation`: the isolation domain. Requests share cached prefixes only within a domain.
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
    isolation: str = ""


class EmbedRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="embed"):
    """A request for one vector for each of `inputs`, which are texts or token ids. `dimensions` truncates each vector to that many
    numbers; `normalize` then scales it to length 1. `overflow` `truncate` drops the end of an input longer than the context."""

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
    """A request for one score for each of `documents`: how well it answers `query`."""

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
    """Token counts. `cached_tokens` is the part of `prompt_tokens` that was reused from the KV cache."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Timings(msgspec.Struct, frozen=True):
    """Time in the engine in nanoseconds: until the first token, and from the first token to the end."""

    prefill_ns: int
    decode_ns: int


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The request has a slot. `prompt_ids` is empty unless the request set `return_prompt_ids`."""

    request: str
    epoch: int
    seq: int
    prompt_tokens: int
    cached_tokens: int
    prompt_ids: tuple[int, ...] = ()


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token and the natural logarithm of its probability under the model's own distribution (temperature 1, no truncation). `token` is
    its bytes, which may be part of a UTF-8 character."""

    token: bytes
    logprob: float


class ChosenLogprob(msgspec.Struct, frozen=True, omit_defaults=True):
    """The logprob of a sampled token. `top` holds the likeliest tokens at its position, likeliest first."""

    token: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of tool call number `index`. The first piece has `id` and `name`; the following ones have parts of `arguments`, which is
    JSON text."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Frame(msgspec.Struct, frozen=True, omit_defaults=True, tag="frame"):
    """Newly generated tokens of one choice, and the text that they release. The text is empty while the output pipeline holds it back.
    `logprobs` has one entry for each of `token_ids` if the request asked for logprobs. `reason` is set if the choice has ended."""

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
    """The vector of one input, as little-endian float32. For a reranked document, its score as the only element."""

    request: str
    epoch: int
    seq: int
    index: int
    vector: bytes


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The request is complete. `reasons` has one entry for each choice, and one entry for embedding and rerank requests."""

    request: str
    epoch: int
    seq: int
    reasons: tuple[FinishReason, ...]
    usage: Usage
    timings: Timings


class Failed(msgspec.Struct, frozen=True, omit_defaults=True, tag="failed"):
    """The request failed. `code` is the code of a class in services.protocol.errors; `field` is the invalid field of the request."""

    request: str
    epoch: int
    seq: int
    code: str
    message: str
    field: str = ""


class HandedOver(msgspec.Struct, frozen=True, tag="handed_over"):
    """The worker is draining and returns the request, so that another worker continues the answer."""

    request: str
    epoch: int
    seq: int


Event = Started | Frame | Embedded | Finished | Failed | HandedOver


class StepReply(msgspec.Struct, frozen=True):
    """One entry of a gateway's reply stream. `worker` is empty if the registry refuses the requests of a model that cannot load."""

    worker: str
    events: tuple[Event, ...]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Abort a request: its client or gateway is gone, or the gateway missed events of this claim."""

    request: str


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """Call `claim`: a request may be waiting."""


class Crash(msgspec.Struct, frozen=True, tag="crash"):
    """Exit at once, as if killed. Sent by an operator who tests failover (`corral chaos`)."""


Control = Cancel | Wake | Crash


class Committed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of one choice that the gateway has already received: its tokens, and the finish reason if it has ended."""

    token_ids: tuple[int, ...] = ()
    reason: FinishReason | None = None


class Claim(msgspec.Struct, frozen=True):
    """A request that a worker has claimed. `committed` has one entry for each choice if another worker has already generated a part of
    the answer; otherwise it is empty. `held_bytes` is the length of the prompt prefix that the queue expects in the worker's cache."""

    request: Request
    epoch: int
    committed: tuple[Committed, ...] = ()
    held_bytes: int = 0


def new_id() -> str:
    """A new identifier, sortable by creation time: 12 hex digits of milliseconds since the epoch, then 20 random ones."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
