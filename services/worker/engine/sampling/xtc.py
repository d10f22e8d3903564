"""XTC, "exclude top choices": occasionally removes the likeliest tokens."""

from __future__ import annotations

import numpy as np

from services.worker.engine.sampling.candidates import Candidates, total

_POSSIBLE = np.finfo(np.float32).tiny


def exclude_top_choices(candidates: Candidates, threshold: float) -> Candidates:
    """`llama_sampler_init_xtc` after its random draw decided to apply it: removes all candidates with a probability of at least
    `threshold` except the least probable of them. Above 0.5 at most one can reach it, so nothing happens."""
    if threshold > 0.5 or len(candidates) < 2:
        return candidates
    weights = candidates.weights()
    choices = np.flatnonzero(weights >= max(np.float32(threshold * total(weights)), _POSSIBLE))
    if len(choices) < 2:
        return candidates
    order = np.argsort(-candidates.logits.take(choices), kind="stable")
    logits = candidates.logits.copy()
    logits[choices.take(order[:-1])] = -np.inf
    return Candidates(logits, candidates.ids)
