"""The sampler chain of one request: takes logits, returns a token.

The stages and their order are those of llama.cpp's default chain (`common_sampler_init` in common/sampling.cpp):

    logit bias, end tokens forbidden, grammar    forbid tokens
    penalties, DRY                               against repetition
    top-k, typical-p, top-p, min-p, XTC          remove unlikely tokens, or too likely ones; mirostat replaces these
    temperature, draw

A draw depends only on (seed, position, logits, text) and on mirostat's `mu`, so a request that another worker resumes
continues the same random sequence. Two differences from llama.cpp: temperature 0 takes the likeliest token and skips the
truncating stages, and penalties and DRY also apply with mirostat.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.protocol.sampling import StopConditions
from services.worker.engine.sampling.candidates import Candidates, Logits
from services.worker.engine.sampling.draw import drawn, keyed_uniform
from services.worker.engine.sampling.logprobs import Ranking, logprobs
from services.worker.engine.sampling.mirostat import Mirostat, surprise
from services.worker.engine.sampling.stages import Stages
from services.worker.engine.sampling.truncation import min_p, top_k, top_p, typical
from services.worker.engine.sampling.xtc import exclude_top_choices


class Matcher(Protocol):
    """A grammar and its state after the text so far. `mask` returns None if every token is allowed."""

    def mask(self) -> NDArray[np.bool_] | None: ...

    def accept(self, token: int) -> None: ...


@dataclass(frozen=True)
class Sampled:
    """A token. If the request asks for logprobs: the natural log of its probability under the model's distribution, and the
    likeliest tokens with theirs, likeliest first. Minus infinity for a token that the model rules out."""

    token: int
    logprob: float | None = None
    top: Ranking = ()


class Sampler:
    """Samples the tokens of one choice. Only the engine thread uses it.

    `sample` can be called any number of times: only `accept` changes the grammar's state and mirostat's `mu`. The choices of a
    request (`choice` 0, 1, ...) have different seeds.
    """

    def __init__(
        self,
        stages: Stages,
        stopping: StopConditions,
        *,
        end_tokens: frozenset[int],
        choice: int = 0,
        top_logprobs: int | None = None,
        grammar: Matcher | None = None,
    ) -> None:
        self._params = params = stages.params
        self.seed = (secrets.randbits(63) if params.seed is None else params.seed) + choice
        self._min_tokens = np.inf if stopping.ignore_eos else stopping.min_tokens
        self._end_ids = np.array(sorted(end_tokens), dtype=np.intp)
        self._bias = stages.bias
        self._history = stages.history
        self._mirostat = Mirostat(params) if params.mirostat else None
        self._top_logprobs = top_logprobs
        self._grammar = grammar
        self._surprise: tuple[int, float] | None = None

    def sample(self, logits: Logits, tokens: TokenIds[int], num_prompt_tokens: int) -> Sampled:
        """`logits` has one entry per token of the vocabulary; not modified. `tokens` is the prompt and the answer so far."""
        position = len(tokens) - num_prompt_tokens
        raw = Candidates(logits)
        with np.errstate(over="ignore"):  # logits near the largest float
            token = self._choose(raw, self._allowed(raw, tokens, position), position)
            if self._top_logprobs is None:
                return Sampled(token)
            return Sampled(token, *logprobs(raw, token, self._top_logprobs))

    def accept(self, token: int) -> None:
        """Records a token that was added to the text. Call it once for each, also for those of an earlier run."""
        if self._grammar is not None:
            self._grammar.accept(token)
        if self._mirostat is not None and self._surprise is not None and self._surprise[0] == token:
            self._mirostat.observe(self._surprise[1])
        self._surprise = None

    def _allowed(self, raw: Candidates, tokens: TokenIds[int], position: int) -> Candidates:
        """The candidates after logit bias, end tokens, penalties, DRY and the grammar."""
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
        """The token to take if nothing can be drawn: the likeliest end token, or the likeliest token if the model has none.

        Nothing can be drawn if the grammar is complete or forbids all tokens that the other stages leave.
        """
        ends = raw.at(self._end_ids) if len(self._end_ids) else raw
        return ends.id_at(int(np.argmax(ends.logits)))
