"""Stages: the part of the sampler chain that the choices of one request share."""

from __future__ import annotations

from collections.abc import Callable

from services.protocol.sampling import SamplingParams
from services.worker.engine.sampling.bias import LogitBias
from services.worker.engine.sampling.bounds import clamped
from services.worker.engine.sampling.dry import Dry
from services.worker.engine.sampling.penalties import Penalties


class Stages:
    """The clipped parameters, and the stages that change logits. `vocabulary` returns a token's written form.

    Built once per request, because a request can contain long lists. After that only the engine thread uses it.
    """

    def __init__(self, params: SamplingParams, vocabulary: Callable[[int], bytes]) -> None:
        self.params = params = clamped(params)
        self.bias = LogitBias(params.logit_bias) if params.logit_bias else None
        self.history = [stage for stage in (Penalties(params), Dry(params, vocabulary)) if stage.is_on]
