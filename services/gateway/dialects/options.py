"""Run options, under Ollama's names in every dialect. The request's options override the version's, which override the
defaults.

Options that Ollama lacks have llama-server's names. Of the options for loading a model, only num_ctx has an effect; num_gpu and
the others are checked and otherwise ignored, since the deployment decides. Unknown names are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from services.gateway.dialects.bodies import InvalidField, check_limit
from services.gateway.dialects.limits import BIASES, BREAKER_TEXT, BREAKERS, STOP_TEXT, STOPS, Limit
from services.protocol.sampling import SamplingParams, StopConditions

Options = Mapping[str, Any]

_INT32_MAX = 2**31 - 1
_FLOAT32_MAX = 3.4e38


class InvalidOption(InvalidField):
    """An option with the wrong type, reported with Ollama's message."""

    def __init__(self, name: str, expected: str) -> None:
        super().__init__(f'option "{name}" must be of {expected}', field=name)


class RunOptions(msgspec.Struct, frozen=True):
    """For `keep_tokens` see GenerateRequest. `context_tokens` is the context length that was asked for; 0 for any."""

    sampling: SamplingParams
    stopping: StopConditions
    keep_tokens: int
    context_tokens: int = 0


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(name, "type integer")
    return int(max(-_INT32_MAX, min(_INT32_MAX, value)))


def _count(name: str, value: object) -> int:
    return max(0, _integer(name, value))


def _window(name: str, value: object) -> int:
    """A number of tokens; -1 means all."""
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
    """-1 means a random seed. llama.cpp's seeds have 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(name, "type integer")
    return None if value == -1 else int(value) & 0xFFFFFFFF


def _float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(name, "type float32")
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
        raise InvalidOption(name, "type boolean")
    return value


def _strings(name: str, value: object, entries: Limit, characters: Limit) -> tuple[str, ...]:
    """Accepts a single string as a list of one. Drops empty strings."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        raise InvalidOption(name, "type array")
    if not all(isinstance(item, str) for item in listed):
        raise InvalidOption(name, "an array of strings")
    check_limit(entries, len(listed), field=name)
    check_limit(characters, sum(map(len, listed)), field=name)
    return tuple(item for item in listed if item)


def _stops(name: str, value: object) -> tuple[str, ...]:
    return _strings(name, value, STOPS, STOP_TEXT)


def _breakers(name: str, value: object) -> tuple[str, ...]:
    return _strings(name, value, BREAKERS, BREAKER_TEXT)


def _logit_bias(name: str, value: object) -> tuple[tuple[int, float], ...]:
    """Accepts OpenAI's map of token ids to biases, and llama-server's list of pairs, where `false` forbids the token."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list):
        raise InvalidField(f"{name}: expected a map of token ids to numbers", field=name)
    check_limit(BIASES, len(pairs), field=name)
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
    "dry_sequence_breakers": _breakers,
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
    "stop": _stops,
}


def run_options(*layers: Options) -> RunOptions:
    """Merges layers of options: later layers win, and null values are skipped.

    Raises InvalidOption for a wrong type, InvalidField for a wrong value.
    """
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
        context_tokens=max(0, chosen.get("num_ctx", 0)),
    )
