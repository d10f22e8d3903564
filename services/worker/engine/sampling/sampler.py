"""The sampler chain of one request: logits in, a token out.

The stages and their order are those of llama.cpp's default chain (`common_sampler_init` in common/sampling.cpp):

    logit bias, end tokens forbidden, grammar    what may not be drawn
    penalties, DRY                               what was said already
    top-k, typical-p, top-p, min-p, XTC          what is unlikely, or too likely; mirostat stands in for these
    temperature, draw

A draw depends on nothing but (seed, position, logits, text), so a request that is resumed elsewhere continues the same random
sequence, whatever else was in the batch. Two differences from llama.cpp: temperature 0 takes the likeliest token whatever the
stages between would do, and penalties and DRY work with mirostat too. A stage that the parameters do not need costs nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.protocol.sampling import SamplingParams, StopConditions
from services.worker.engine.sampling.bias import LogitBias
from services.worker.engine.sampling.bounds import within_reason
from services.worker.engine.sampling.candidates import Candidates, Logits
from services.worker.engine.sampling.draw import drawn, keyed_uniform
from services.worker.engine.sampling.dry import Dry
from services.worker.engine.sampling.logprobs import Ranking, logprobs
from services.worker.engine.sampling.mirostat import Mirostat, surprise
from services.worker.engine.sampling.penalties import Penalties
from services.worker.engine.sampling.truncation import min_p, top_k, top_p, typical
from services.worker.engine.sampling.xtc import exclude_top_choices


class Matcher(Protocol):
    """A grammar and how much of it the text has matched. `mask` None: every token is allowed."""

    def mask(self) -> NDArray[np.bool_] | None: ...

    def accept(self, token: int) -> None: ...


@dataclass(frozen=True)
class Sampled:
    """A token. Where logprobs were asked for, the natural logarithm of its probability under the model's own distribution, and
    (token, logprob) of the likeliest, the likeliest first. Minus infinity for what the model rules out."""

    token: int
    logprob: float | None = None
    top: Ranking = ()


class Sampler:
    """Only the engine thread touches it. All that changes are the grammar's state and mirostat's `mu`, and both in `accept`
    alone; `sample` may be called any number of times.

    `vocabulary` gives a token's text as it is written. Choices of one request (`choice` 0, 1 ...) draw differently.
    """

    def __init__(
        self,
        params: SamplingParams,
        stopping: StopConditions,
        *,
        end_tokens: frozenset[int],
        vocabulary: Callable[[int], bytes],
        choice: int = 0,
        top_logprobs: int | None = None,
        grammar: Matcher | None = None,
    ) -> None:
        self._params = params = within_reason(params)
        self.seed = (secrets.randbits(63) if params.seed is None else params.seed) + choice
        self._min_tokens = np.inf if stopping.ignore_eos else stopping.min_tokens
        self._end_ids = np.array(sorted(end_tokens), dtype=np.intp)
        self._bias = LogitBias(params.logit_bias) if params.logit_bias else None
        self._history = [stage for stage in (Penalties(params), Dry(params, vocabulary)) if stage.is_on]
        self._mirostat = Mirostat(params) if params.mirostat else None
        self._top_logprobs = top_logprobs
        self._grammar = grammar
        self._surprise: tuple[int, float] | None = None

    def sample(self, logits: Logits, tokens: TokenIds[int], num_prompt_tokens: int) -> Sampled:
        """`logits` has one entry per token of the vocabulary and is not changed; `tokens` is the text so far, prompt included."""
        position = len(tokens) - num_prompt_tokens
        raw = Candidates(logits)
        with np.errstate(over="ignore"):  # logits near the end of their range
            token = self._choose(raw, self._allowed(raw, tokens, position), position)
            if self._top_logprobs is None:
                return Sampled(token)
            return Sampled(token, *logprobs(raw, token, self._top_logprobs))

    def accept(self, token: int) -> None:
        """The token is part of the text now: called once for each, in order, also for those of an earlier run."""
        if self._grammar is not None:
            self._grammar.accept(token)
        if self._mirostat is not None and self._surprise is not None and self._surprise[0] == token:
            self._mirostat.observe(self._surprise[1])
        self._surprise = None

    def _allowed(self, raw: Candidates, tokens: TokenIds[int], position: int) -> Candidates:
        """What bias, end tokens, penalties and DRY make of the logits, and what the grammar leaves of them."""
        candidates = raw
        too_early = position < self._min_tokens
        if self._bias or self._history or too_early:
            row = raw.logits.copy()
            if self._bias:
                self._bias.apply(row)
            if too_early:
                row[self._end_ids] = -np.inf
            for stage in self._history:
                stage.apply(row, tokens)
            candidates = Candidates(row)
        mask = None if self._grammar is None else self._grammar.mask()
        return candidates if mask is None else candidates.where(mask)

    def _choose(self, raw: Candidates, candidates: Candidates, position: int) -> int:
        params = self._params
        if params.temperature <= 0:
            best = candidates.likeliest()
            return self._end(raw) if best is None else best
        if self._mirostat is None:
            candidates = top_k(candidates, params.top_k)
        if not np.isfinite(candidates.peak):
            return self._end(raw)
        uniform = keyed_uniform(self.seed, position)
        if self._mirostat is not None:
            return self._draw_by_mirostat(self._mirostat, candidates, uniform, len(raw))
        candidates = typical(candidates, params.typical_p)
        candidates = top_p(candidates, params.top_p)
        candidates = min_p(candidates, params.min_p)
        if params.xtc_probability > 0 and keyed_uniform(self.seed, position, b"xtc") <= params.xtc_probability:
            candidates = exclude_top_choices(candidates, params.xtc_threshold)
        return candidates.id_at(drawn(candidates.weights(params.temperature), uniform))

    def _draw_by_mirostat(self, mirostat: Mirostat, candidates: Candidates, uniform: float, num_vocab: int) -> int:
        kept = mirostat.truncate(candidates.at_temperature(self._params.temperature), num_vocab)
        weights = kept.weights()
        index = drawn(weights, uniform)
        token = kept.id_at(index)
        self._surprise = (token, surprise(weights, index))
        return token

    def _end(self, raw: Candidates) -> int:
        """Nothing may be drawn: the grammar is at its end, or forbids what the other stages leave. That ends the text, where
        the model knows how to."""
        ends = raw.at(self._end_ids) if len(self._end_ids) else raw
        return ends.id_at(int(np.argmax(ends.logits)))
