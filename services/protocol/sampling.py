"""How the tokens of an answer are drawn, what they must match, and where the answer ends. In no dialect."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

#: Where DRY starts a fresh comparison; llama.cpp's own.
DRY_SEQUENCE_BREAKERS = ("\n", ":", '"', "*")


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is drawn. The defaults leave the model's distribution as it is; dialects bring their own.

    `top_k` 0, `top_p` 1, `min_p` 0, `typical_p` 1, `repeat_penalty` 1, `dry_multiplier` 0, `xtc_probability` 0, `mirostat` 0, and
    penalties of 0 are off. `repeat_last_n` and `dry_penalty_last_n` are windows in tokens: 0 none, -1 the whole context.
    `temperature` 0 takes the likeliest token. `seed` None draws a fresh seed. `logit_bias` holds (token id, what is added to its
    logit); an id of -1 or beyond the vocabulary is a BadRequest.
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
    """`max_tokens` None: until the model ends or the context is full; 0: load the model, generate nothing. Before `min_tokens`,
    and always with `ignore_eos`, the tokens that end a text cannot be drawn."""

    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()


class JsonObject(msgspec.Struct, frozen=True, tag="json"):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, frozen=True, tag="schema"):
    """JSON that validates against `schema`, its properties in the schema's order."""

    schema: dict[str, Any] | bool


class Gbnf(msgspec.Struct, frozen=True, tag="gbnf"):
    """llama.cpp's grammar notation (grammars/README.md of llama.cpp); the start rule is `root`."""

    grammar: str


class Lark(msgspec.Struct, frozen=True, tag="lark"):
    """llguidance's variant of Lark's notation; the start rule is `start`."""

    grammar: str


class Regex(msgspec.Struct, frozen=True, tag="regex"):
    """The whole answer matches `pattern` (Rust's regex syntax)."""

    pattern: str


Constraint = JsonObject | JsonSchema | Gbnf | Lark | Regex
