"""From logits to a token: the sampler chain of one request, in numpy.

The stages and their order are those of llama.cpp's default chain: penalties, top-k, typical-p, top-p, min-p, temperature,
draw. A draw depends on nothing but (seed, position, distribution), so a request that is resumed elsewhere continues the
same random sequence, whatever else was in the batch. The llama.cpp chain itself sorts and copies the whole vocabulary for
each token (262,144 entries for Gemma 3) and keeps a random state that cannot be put back to a position.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.protocol.sampling import SamplingParams, StopConditions

Logits = NDArray[np.float32]
Ids = NDArray[np.intp]

#: The k largest of a vocabulary lie in the k blocks with the largest maxima, so only those blocks need sorting.
_BLOCK = 512

#: Candidates among which top-p and typical-p look first. Where these hold too little probability, all are sorted.
_HEAD = 1024


class Matcher(Protocol):
    """What a grammar allows next. `mask` is None where everything is allowed."""

    def mask(self) -> NDArray[np.bool_] | None: ...

    def accept(self, token: int) -> None: ...


@dataclass(frozen=True)
class Sampled:
    """A token, and where logprobs were asked for its own and the likeliest ones', the likeliest first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Holds no state but the request's parameters and its seed."""

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
        self._params = _within_reason(params)
        self.seed = (secrets.randbits(63) if params.seed is None else params.seed) + choice

    def sample(self, logits: Logits, tokens: TokenIds[int], num_prompt_tokens: int) -> Sampled:
        """`logits` has one entry per token of the vocabulary and is not changed; `tokens` is the text so far, prompt included."""
        params = self._params
        logits = _penalize(logits, tokens, params)
        if params.temperature <= 0:
            return Sampled(int(np.argmax(logits)))
        ids = _candidates(logits, params)
        kept = logits if ids is None else logits[ids]
        weights = np.exp((kept - kept.max()) / np.float32(params.temperature))
        index = _drawn(weights, keyed_uniform(self.seed, len(tokens) - num_prompt_tokens))
        return Sampled(index if ids is None else int(ids[index]))

    def accept(self, token: int) -> None:
        """The token is part of the text now."""


def _within_reason(params: SamplingParams) -> SamplingParams:
    """Callers may ask for any number. Beyond these bounds a value makes no difference any more, or makes the arithmetic
    overflow: a temperature below a ten-thousandth is the likeliest token, a penalty of 100 forbids."""

    def clip(value: float, low: float, high: float) -> float:
        return min(max(value, low), high)

    return msgspec.structs.replace(
        params,
        temperature=0.0 if params.temperature < 1e-4 else min(params.temperature, 1e4),
        top_p=clip(params.top_p, 0, 1),
        min_p=clip(params.min_p, 0, 1),
        typical_p=clip(params.typical_p, 0, 1),
        repeat_penalty=clip(params.repeat_penalty, 0.01, 100),
        frequency_penalty=clip(params.frequency_penalty, -100, 100),
        presence_penalty=clip(params.presence_penalty, -100, 100),
    )


def keyed_uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits that depends on (seed, position) alone."""
    key = (seed & (2**64 - 1)).to_bytes(8, "little") + position.to_bytes(8, "little")
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 11) / 2**53


def _penalize(logits: Logits, tokens: TokenIds[int], params: SamplingParams) -> Logits:
    """llama.cpp's `llama_sampler_init_penalties`: repetition divides positive and multiplies negative logits, frequency
    subtracts per occurrence, presence once, over the last `repeat_last_n` tokens."""
    if params.repeat_penalty == 1.0 and params.frequency_penalty == 0.0 and params.presence_penalty == 0.0:
        return logits
    window = tokens if params.repeat_last_n < 0 else tokens[max(0, len(tokens) - params.repeat_last_n) :]
    if not window:
        return logits
    ids, counts = np.unique(np.asarray(window), return_counts=True)
    seen = logits[ids]
    seen = np.where(seen > 0, seen / params.repeat_penalty, seen * params.repeat_penalty)
    logits = logits.copy()
    logits[ids] = seen - counts * params.frequency_penalty - params.presence_penalty
    return logits


def _candidates(logits: Logits, params: SamplingParams) -> Ids | None:
    """The ids that top-k, typical-p, top-p and min-p leave; None for the whole vocabulary."""
    top_k = params.top_k if 0 < params.top_k < len(logits) else len(logits)
    ids = None
    if params.top_p < 1 or params.typical_p < 1:
        ids = _probable(logits, top_k, params)
    elif top_k < len(logits):
        ids = _largest(logits, top_k)
    if params.min_p > 0:
        kept = logits if ids is None else logits[ids]
        likely = np.flatnonzero(kept >= kept.max() + np.log(params.min_p))
        ids = likely if ids is None else ids[likely]
    return ids


def _probable(logits: Logits, top_k: int, params: SamplingParams) -> Ids:
    """Typical-p and top-p among the `top_k` largest, the largest first."""
    ids = _largest(logits, min(top_k, _HEAD))
    if top_k > len(ids) and not _head_suffices(logits, ids, params):
        ids = _largest(logits, top_k)
    total = _total(logits, logits[ids] if top_k < len(logits) else logits)
    probabilities = np.exp(logits[ids] - logits[ids[0]]) / total
    if params.typical_p < 1:
        kept = _typical(probabilities, params.typical_p)
        ids, probabilities = ids[kept], probabilities[kept] / probabilities[kept].sum()
    if params.top_p < 1:
        ids = ids[: _nucleus(probabilities, params.top_p)]
    return ids


def _head_suffices(logits: Logits, head: Ids, params: SamplingParams) -> bool:
    """Whether the nucleus lies within the head. Typical-p ranks by surprise, not by probability, and needs everything."""
    if params.typical_p < 1:
        return False
    return bool(np.exp(logits[head] - logits[head[0]]).sum() >= params.top_p * _total(logits, logits))


def _total(logits: Logits, over: Logits) -> float:
    """The sum of the weights of `over`, where the largest of `logits` weighs 1."""
    return float(np.exp(over - logits.max()).sum(dtype=np.float64))


def _largest(logits: Logits, k: int) -> Ids:
    """The ids of the k largest logits, the largest first; among equals the smaller id first."""
    if k * _BLOCK < len(logits):
        whole = len(logits) // _BLOCK * _BLOCK
        maxima = logits[:whole].reshape(-1, _BLOCK).max(axis=1)
        blocks = np.argpartition(-maxima, k - 1)[:k]
        ids = (blocks[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
        ids = np.concatenate([ids, np.arange(whole, len(logits))])
    else:
        ids = np.arange(len(logits))
    if k < len(ids):
        ids = ids[np.argpartition(-logits[ids], k - 1)[:k]]
    return ids[np.lexsort((ids, -logits[ids]))]


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> int:
    """How many of the descending probabilities reach `top_p` together; at least one."""
    return int(np.searchsorted(np.cumsum(probabilities), top_p, side="left")) + 1


def _typical(probabilities: NDArray[np.float64], typical_p: float) -> Ids:
    """Locally typical sampling (Meister et al. 2022): those nearest to the entropy, until they hold `typical_p`. The result
    keeps the order of `probabilities`."""
    surprise = -np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    entropy = (probabilities * surprise).sum()
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    return np.sort(order[: _nucleus(probabilities[order], typical_p)])


def _drawn(weights: Logits, uniform: float) -> int:
    """The index at which the running sum of the weights passes `uniform` (in [0, 1)) of the whole: first among blocks, then
    within one, which spares summing up a whole vocabulary."""
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64))
    target = uniform * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    before = blocks[block - 1] if block else 0.0
    index = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), target - before, side="right"))
    # Rounding may carry the target past the end of its block; a weight of zero is never drawn.
    return block * _BLOCK + min(index, int(np.flatnonzero(inside)[-1]))
