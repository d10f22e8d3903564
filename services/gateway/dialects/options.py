"""Run options in Ollama's names, which all dialects come down to: the request's own, before the version's, before defaults.

Names beyond Ollama's are those of llama-server. The options of loading (num_ctx, num_gpu and so on) are checked and left to the
deployment. Unknown names are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from services.gateway.dialects.bodies import InvalidField
from services.protocol.errors import CorralError
from services.protocol.sampling import SamplingParams, StopConditions

Options = Mapping[str, Any]

_INT32_MAX = 2**31 - 1
_FLOAT32_MAX = 3.4e38


class InvalidOption(CorralError):
    """Ollama answers a wrong type with status 500, and so does this."""


class RunOptions(msgspec.Struct, frozen=True):
    """`keep_tokens` as in GenerateRequest."""

    sampling: SamplingParams
    stopping: StopConditions
    keep_tokens: int


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(f'option "{name}" must be of type integer')
    return int(max(-_INT32_MAX, min(_INT32_MAX, value)))


def _count(name: str, value: object) -> int:
    return max(0, _integer(name, value))


def _window(name: str, value: object) -> int:
    """Tokens; -1 is all of them."""
    return max(-1, _integer(name, value))


def _limit(name: str, value: object) -> int | None:
    limit = _integer(name, value)
    return None if limit < 0 else limit


def _mirostat(name: str, value: object) -> int:
    version = _integer(name, value)
    if version not in (0, 1, 2):
        raise InvalidField(f"{name}: must be 0, 1 or 2", field=name)
    return version


def _seed(name: str, value: object) -> int | None:
    """-1 draws a fresh one; llama.cpp's seeds have 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(f'option "{name}" must be of type integer')
    return None if value == -1 else int(value) & 0xFFFFFFFF


def _float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(f'option "{name}" must be of type float32')
    return float(max(-_FLOAT32_MAX, min(_FLOAT32_MAX, value)))


def _at_least_zero(name: str, value: object) -> float:
    return max(0.0, _float(name, value))


def _divisor(name: str, value: object) -> float:
    number = _float(name, value)
    if number <= 0:
        raise InvalidField(f"{name}: must be greater than 0", field=name)
    return number


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidOption(f'option "{name}" must be of type boolean')
    return value


def _strings(name: str, value: object) -> tuple[str, ...]:
    """A single string counts as a list of one; empty ones stop nothing."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        raise InvalidOption(f'option "{name}" must be of type array')
    if not all(isinstance(item, str) for item in listed):
        raise InvalidOption(f'option "{name}" must be of an array of strings')
    return tuple(item for item in listed if item)


def _logit_bias(name: str, value: object) -> tuple[tuple[int, float], ...]:
    """OpenAI's map of token ids to biases, or llama-server's list of pairs, where `false` forbids the token."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list):
        raise InvalidField(f"{name}: expected a map of token ids to numbers", field=name)
    return tuple(_bias(name, pair) for pair in pairs)


def _bias(name: str, pair: object) -> tuple[int, float]:
    match pair:
        case [int() | str() as token, False] if (id := _token_id(token)) is not None:
            return id, -math.inf
        case [int() | str() as token, int() | float() as bias] if (id := _token_id(token)) is not None and bias is not True:
            return id, _float(name, bias)
        case _:
            raise InvalidField(f"{name}: expected token ids and numbers", field=name)


def _token_id(token: int | str) -> int | None:
    if isinstance(token, str):
        token = int(token) if token.isascii() and token.isdigit() and len(token) <= 10 else -1
    return token if 0 <= token <= _INT32_MAX and not isinstance(token, bool) else None


_LOADING = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict")
_FLOATS = ("top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base")
_MORE_FLOATS = ("xtc_probability", "xtc_threshold", "mirostat_tau", "mirostat_eta")
_STOPPING = ("min_tokens", "ignore_eos", "stop")

_SAMPLING: dict[str, Callable[[str, object], Any]] = {
    **dict.fromkeys((*_FLOATS, *_MORE_FLOATS), _float),
    "temperature": _at_least_zero,
    "top_k": _count,
    "repeat_penalty": _divisor,
    "repeat_last_n": _window,
    "dry_allowed_length": _count,
    "dry_penalty_last_n": _window,
    "dry_sequence_breakers": _strings,
    "mirostat": _mirostat,
    "logit_bias": _logit_bias,
    "seed": _seed,
}
_CHECKS: dict[str, Callable[[str, object], Any]] = {
    **_SAMPLING,
    **dict.fromkeys(_LOADING, _integer),
    "use_mmap": _boolean,
    "num_predict": _limit,
    "num_keep": _window,
    "min_tokens": _count,
    "ignore_eos": _boolean,
    "stop": _strings,
}


def run_options(*layers: Options) -> RunOptions:
    """Later layers win; null values are skipped. Raises InvalidOption for a wrong type, InvalidField for a wrong value."""
    chosen = {
        name: _CHECKS[name](name, value)
        for layer in layers
        for name, value in layer.items()
        if value is not None and name in _CHECKS
    }
    return RunOptions(
        SamplingParams(**{name: value for name, value in chosen.items() if name in _SAMPLING}),
        StopConditions(
            max_tokens=chosen.get("num_predict"),
            **{name: value for name, value in chosen.items() if name in _STOPPING},
        ),
        keep_tokens=chosen.get("num_keep", 0),
    )
