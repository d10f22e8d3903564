"""The cost of drawing a token: our chain and llama.cpp's with the same parameters, for vocabularies of 262,144 and 49,152 tokens.

    python benchmarks/sampling.py [--json FILE]

Rounds alternate between the two; each draws once from each of several rows of logits with the shape of a model's. llama.cpp's time
includes one copy of the candidate array, in place of the filling that `llama_sampler_sample` does for each token. Its chain has no
logprobs, so that row compares ours with its greedy draw. Takes about 10 seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from services.protocol.sampling import SamplingParams, StopConditions
from services.worker.engine.sampling import Sampler, Stages

VOCABULARIES = (262_144, 49_152)
ROUNDS = 9
ROWS = 6
TEXT_TOKENS = 1000

T = TypeVar("T")

Row = NDArray[np.float32]
Candidates = NDArray[np.void]

_ENTRY = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@dataclass(frozen=True)
class Case:
    name: str
    params: SamplingParams
    flat: bool = False
    top_logprobs: int | None = None


CASES = [
    Case("greedy", SamplingParams(temperature=0)),
    Case("temperature alone", SamplingParams(temperature=0.8)),
    Case("top_k 40, top_p 0.9, temperature 0.8", SamplingParams(temperature=0.8, top_k=40, top_p=0.9)),
    Case("the same with penalties", SamplingParams(temperature=0.8, top_k=40, top_p=0.9, repeat_penalty=1.1)),
    Case("min_p 0.05", SamplingParams(min_p=0.05)),
    Case("top_p 0.95", SamplingParams(top_p=0.95)),
    Case("top_p 0.95, flat logits", SamplingParams(top_p=0.95), flat=True),
    Case("typical_p 0.9", SamplingParams(typical_p=0.9)),
    Case("top_k 40, DRY over 1,000 tokens", SamplingParams(top_k=40, dry_multiplier=0.8, dry_sequence_breakers=())),
    Case("min_p 0.05, XTC", SamplingParams(min_p=0.05, xtc_probability=0.5)),
    Case("mirostat 2", SamplingParams(mirostat=2)),
    Case("greedy, with 5 logprobs", SamplingParams(temperature=0), top_logprobs=5),
]


def model_like(rng: np.random.Generator, size: int) -> Row:
    """With the shape that was measured for Gemma 3 270M and SmolLM2 135M in running text: a normal distribution 25 or 20 below
    the likeliest on average, and a nucleus of some hundred tokens for 0.95."""
    spread, top = (4.5, 25.0) if size > 100_000 else (3.6, 20.0)
    row = rng.normal(scale=spread, size=size)
    head = rng.choice(size, 1000, replace=False)
    row[head] = np.maximum(row[head], top - 1.4 * np.log(np.arange(1, 1001)))
    return row.astype(np.float32)


def flat(rng: np.random.Generator, size: int) -> Row:
    return rng.normal(scale=0.5, size=size).astype(np.float32)


def candidates_of(row: Row) -> Candidates:
    """In the layout of `llama_sampler_sample`."""
    candidates = np.zeros(len(row), dtype=_ENTRY)
    candidates["id"] = np.arange(len(row))
    candidates["logit"] = row
    return candidates


class LlamaChain:
    """The chain of `common_sampler_init` without the stages that are off, and the array that it works on."""

    def __init__(self, params: SamplingParams, size: int, text: list[int]) -> None:
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for stage in _stages(params, size):
            llama_cpp.llama_sampler_chain_add(self._chain, stage)
        for token in text:
            llama_cpp.llama_sampler_accept(self._chain, token)
        self._entries = np.empty(size, dtype=_ENTRY)

    def sample(self, candidates: Candidates) -> int:
        """Works on a copy, because the chain permutes its array."""
        ctypes.memmove(self._entries.ctypes.data, candidates.ctypes.data, candidates.nbytes)
        pointer = self._entries.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(data=pointer, size=len(candidates), selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def close(self) -> None:
        llama_cpp.llama_sampler_free(self._chain)


def _stages(params: SamplingParams, size: int) -> list[Any]:
    stages = []
    if params.repeat_penalty != 1.0:
        stages.append(llama_cpp.llama_sampler_init_penalties(size, params.repeat_last_n, params.repeat_penalty, 0.0, 0.0))
    if params.dry_multiplier:
        stages.append(
            llama_cpp.llama_sampler_init_dry(
                None, params.dry_multiplier, params.dry_base, params.dry_allowed_length, TEXT_TOKENS, None, 0
            )
        )
    if params.temperature <= 0:
        return [*stages, llama_cpp.llama_sampler_init_greedy()]
    if params.mirostat:
        return [*stages, llama_cpp.llama_sampler_init_mirostat_v2(1, params.mirostat_tau, params.mirostat_eta)]
    if params.top_k:
        stages.append(llama_cpp.llama_sampler_init_top_k(params.top_k))
    if params.typical_p < 1:
        stages.append(llama_cpp.llama_sampler_init_typical(params.typical_p, 0))
    if params.top_p < 1:
        stages.append(llama_cpp.llama_sampler_init_top_p(params.top_p, 0))
    if params.min_p > 0:
        stages.append(llama_cpp.llama_sampler_init_min_p(params.min_p, 0))
    if params.xtc_probability > 0:
        stages.append(llama_cpp.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 0, 1))
    return [*stages, llama_cpp.llama_sampler_init_temp(params.temperature), llama_cpp.llama_sampler_init_dist(1)]


def microseconds(sample: Callable[[T], object], rows: list[T]) -> float:
    """The median over one draw from each row."""
    times = []
    for row in rows:
        started = time.perf_counter()
        sample(row)
        times.append((time.perf_counter() - started) * 1e6)
    return statistics.median(times)


def measure(case: Case, size: int, rng: np.random.Generator) -> dict[str, float]:
    rows = [(flat if case.flat else model_like)(rng, size) for _ in range(ROWS)]
    text = rng.integers(0, 2000, TEXT_TOKENS).tolist()
    ours = Sampler(
        Stages(case.params, lambda _: b"x"), StopConditions(), end_tokens=frozenset(), top_logprobs=case.top_logprobs
    )
    theirs = LlamaChain(case.params, size, text)
    candidates = [candidates_of(row) for row in rows]
    pairs = [
        (microseconds(lambda row: ours.sample(row, text, TEXT_TOKENS), rows), microseconds(theirs.sample, candidates))
        for _ in range(ROUNDS)
    ]
    theirs.close()
    ratios = sorted(our / their for our, their in pairs)
    return {
        "ours_us": statistics.median(our for our, _ in pairs),
        "llama_us": statistics.median(their for _, their in pairs),
        "ratio": statistics.median(ratios),
        "ratio_lowest": ratios[0],
        "ratio_highest": ratios[-1],
    }


def show(table: dict[int, dict[str, dict[str, float]]]) -> None:
    for size, cases in table.items():
        print(f"{f'µs a token, {size:,} entries':40}{'ours':>8}{'llama.cpp':>11}{'ratio':>8}  lowest to highest")
        for name, row in cases.items():
            spread = f"{row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f}"
            print(f"{name:40}{row['ours_us']:8.0f}{row['llama_us']:11.0f}{row['ratio']:8.2f}  {spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    table = {size: {case.name: measure(case, size, rng) for case in CASES} for size in VOCABULARIES}
    show(table)
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
