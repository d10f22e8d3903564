"""XTC, "exclude top choices": now and then the obvious continuations are left out."""

from __future__ import annotations

import numpy as np

from services.worker.engine.sampling.candidates import Candidates, total

_POSSIBLE = np.finfo(np.float32).tiny


def exclude_top_choices(candidates: Candidates, threshold: float) -> Candidates:
    """`llama_sampler_init_xtc` where its random draw says that it is applied: of the candidates that are at least `threshold`
    probable, all but the least probable one go. Above one half that cannot be two, and it is off."""
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
