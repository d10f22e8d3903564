"""Run options in Ollama's names, which all dialects come down to: the request's own, before the version's, before defaults.

The options of loading (num_ctx, num_gpu and so on) are checked and left to the deployment. Unknown names are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from services.protocol.errors import CorralError
from services.protocol.sampling import SamplingParams, StopConditions

Options = Mapping[str, Any]

_INT32_MAX = 2**31 - 1


class InvalidOption(CorralError):
    """Ollama answers a wrong type with status 500, and so does this."""


class RunOptions(msgspec.Struct, frozen=True):
    sampling: SamplingParams
    stopping: StopConditions


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(f'option "{name}" must be of type integer')
    return int(max(-_INT32_MAX, min(_INT32_MAX, value)))


def _seed(name: str, value: object) -> int | None:
    """-1 draws a fresh one; llama.cpp's seeds have 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(f'option "{name}" must be of type integer')
    return None if value == -1 else int(value) & 0xFFFFFFFF


def _float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(f'option "{name}" must be of type float32')
    return float(value)


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


_LOAD_INTEGERS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_keep")
_INTEGERS = ("num_predict", "top_k", "repeat_last_n", *_LOAD_INTEGERS)
_FLOATS = ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty")

_CHECKS: dict[str, Callable[[str, object], Any]] = {
    **dict.fromkeys(_INTEGERS, _integer),
    **dict.fromkeys(_FLOATS, _float),
    "seed": _seed,
    "use_mmap": _boolean,
    "stop": _strings,
}


def run_options(*layers: Options) -> RunOptions:
    """Later layers win; null values are skipped. Raises InvalidOption."""
    chosen = {
        name: _CHECKS[name](name, value)
        for layer in layers
        for name, value in layer.items()
        if value is not None and name in _CHECKS
    }
    limit = chosen.get("num_predict", -1)
    return RunOptions(
        SamplingParams(
            temperature=max(0.0, chosen.get("temperature", 1.0)),
            top_k=max(0, chosen.get("top_k", 0)),
            top_p=chosen.get("top_p", 1.0),
            min_p=chosen.get("min_p", 0.0),
            typical_p=chosen.get("typical_p", 1.0),
            repeat_penalty=chosen.get("repeat_penalty", 1.0),
            repeat_last_n=chosen.get("repeat_last_n", 64),
            frequency_penalty=chosen.get("frequency_penalty", 0.0),
            presence_penalty=chosen.get("presence_penalty", 0.0),
            seed=chosen.get("seed"),
        ),
        StopConditions(max_tokens=None if limit < 0 else limit, stop=chosen.get("stop", ())),
    )
