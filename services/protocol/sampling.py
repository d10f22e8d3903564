"""Sampling parameters, stop conditions and output constraints, independent of the API dialect."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

#: llama.cpp's default sequence breakers for DRY. A match does not extend over a breaker.
DRY_SEQUENCE_BREAKERS = ("\n", ":", '"', "*")


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is sampled. The defaults leave the model's distribution unchanged; each dialect has its own defaults.

    - Off: `top_k` 0, `top_p` 1, `min_p` 0, `typical_p` 1, `repeat_penalty` 1, `frequency_penalty` 0, `presence_penalty` 0,
      `dry_multiplier` 0, `xtc_probability` 0, `mirostat` 0.
    - `repeat_last_n` and `dry_penalty_last_n` are windows in tokens; 0: none, -1: the whole context.
    - `temperature` 0 always picks the likeliest token.
    - `logit_bias` holds pairs of a token id and a number that is added to its logit. The worker refuses ids outside the vocabulary
      with BadRequest.
    - `seed` None: a random seed.
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
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = DRY_SEQUENCE_BREAKERS
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None


class StopConditions(msgspec.Struct, frozen=True, omit_defaults=True):
    """When an answer ends. `max_tokens` None: when the model ends it or the context is full; 0: load the model and generate nothing.
    End-of-text tokens are not sampled before `min_tokens`, and never with `ignore_eos`."""

    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()


class JsonObject(msgspec.Struct, frozen=True, tag="json"):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, frozen=True, tag="schema"):
    """JSON that validates against `schema`, with properties in the schema's order."""

    schema: dict[str, Any] | bool


class Gbnf(msgspec.Struct, frozen=True, tag="gbnf"):
    """A grammar in llama.cpp's notation (grammars/README.md in llama.cpp). The start rule is `root`."""

    grammar: str


class Lark(msgspec.Struct, frozen=True, tag="lark"):
    """A grammar in llguidance's variant of Lark's notation. The start rule is `start`."""

    grammar: str


class Regex(msgspec.Struct, frozen=True, tag="regex"):
    """The whole answer must match `pattern` (Rust's regex syntax)."""

    pattern: str


Constraint = JsonObject | JsonSchema | Gbnf | Lark | Regex
