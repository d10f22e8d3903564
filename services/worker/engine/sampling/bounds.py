"""Clips sampling parameters to bounds within which the arithmetic is safe. Callers may send any number."""

from __future__ import annotations

import math

import msgspec

from services.protocol.sampling import SamplingParams

#: (smallest, largest). A value beyond these has no further effect or overflows: a penalty of 100 already forbids a token, and
#: with a DRY base of 1,000 the penalty exceeds any logit.
_BOUNDS = {
    "temperature": (0, 1e4),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (0.01, 100),
    "frequency_penalty": (-100, 100),
    "presence_penalty": (-100, 100),
    "dry_multiplier": (-1e4, 1e4),
    "dry_base": (0, 1e3),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 10),
}

_COLDEST = 1e-4  # below this the likeliest token is certain, so it counts as 0
_BIAS = 1e6
_DEFAULTS = SamplingParams()


def clamped(params: SamplingParams) -> SamplingParams:
    """Returns the parameters clipped to the bounds. NaN becomes the default."""
    changes = {name: _clip(getattr(params, name), *bounds, getattr(_DEFAULTS, name)) for name, bounds in _BOUNDS.items()}
    if changes["temperature"] < _COLDEST:
        changes["temperature"] = 0.0
    bias = tuple((token, _clip(bias, -_BIAS, _BIAS, 0.0)) for token, bias in params.logit_bias)
    return msgspec.structs.replace(params, **changes, logit_bias=bias)


def _clip(value: float, low: float, high: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else min(max(value, low), high)
