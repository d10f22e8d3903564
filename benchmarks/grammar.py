"""The cost of structured output: our masks (llguidance) compared with llama.cpp's grammar sampler, at each token of one answer.

    python benchmarks/grammar.py [--json FILE]

The answer is a JSON document of about fifty tokens. At each position, both compute which tokens of the vocabulary may follow. One pass
warms up before the times are taken. Takes about half a minute.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from comparison.models import MODELS, Model
from services.protocol.engine import EngineSettings
from services.protocol.sampling import Constraint, Gbnf, JsonObject, JsonSchema, Lark, Regex
from services.worker.engine.grammar import GrammarCompiler
from services.worker.engine.llama import LlamaRunner

ANSWER = (
    '{"name": "Ada Lovelace", "born": 1815, "tags": ["mathematician", "a writer of some note"], "address": {"city": "London"}}'
)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "born": {"type": "integer", "minimum": 1000, "maximum": 2100},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 40}},
        "address": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    "required": ["name", "born", "tags", "address"],
}
LARGE_SCHEMA = {"type": "object", "properties": {f"part{number}": SCHEMA for number in range(200)}}

JSON_GBNF = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= "-"? ([0-9] | [1-9] [0-9]{1,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""

COMPILED: dict[str, Constraint] = {
    "any JSON object": JsonObject(),
    "schema": JsonSchema(SCHEMA),
    "schema of 72 KB": JsonSchema(LARGE_SCHEMA),
    "GBNF": Gbnf(JSON_GBNF),
    "regular expression": Regex(r"[a-z0-9._]{1,64}@[a-z0-9.]{1,64}"),
    "Lark": Lark('start: "<answer>" item* "</answer>"\nitem: /[a-z ]+/ "\\n"\n'),
}


def milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def load(model: Model) -> LlamaRunner:
    return LlamaRunner(model.fetch(), EngineSettings(slots=1, context_tokens=256))


@contextmanager
def llama_grammar(runner: LlamaRunner, grammar: str) -> Iterator[Any]:
    sampler = llama_cpp.llama_sampler_init_grammar(runner._vocab, grammar.encode(), b"root")
    yield sampler
    llama_cpp.llama_sampler_free(sampler)


class Candidates:
    """The whole vocabulary as llama.cpp's sampler gets it. Filling it again is not counted."""

    def __init__(self, count: int) -> None:
        self._data = (llama_cpp.llama_token_data * count)()
        self._view = np.ctypeslib.as_array(self._data)
        self._view["id"] = np.arange(count)
        self.array = llama_cpp.llama_token_data_array(data=self._data, size=count, selected=-1, sorted=False)

    def reset(self) -> None:
        self._view["logit"] = 0

    def allowed(self) -> NDArray[np.bool_]:
        finite: NDArray[np.bool_] = np.isfinite(self._view["logit"])
        return finite


def masks(runner: LlamaRunner, grammars: GrammarCompiler) -> dict[str, list[float]]:
    """Milliseconds at each position of the answer, by kind of mask."""
    schema = grammars.compile(JsonSchema(SCHEMA)).matcher()
    gbnf = grammars.compile(Gbnf(JSON_GBNF)).matcher()
    candidates = Candidates(runner.num_vocab)
    spent: dict[str, list[float]] = {"schema": [], "GBNF": [], "GBNF, llama.cpp": [], "accept": []}
    with llama_grammar(runner, JSON_GBNF) as theirs:
        for token in (token for token in runner.tokenize(ANSWER, special=False) if runner.token_bytes(token)):
            spent["schema"].append(milliseconds(schema.mask))
            spent["GBNF"].append(milliseconds(gbnf.mask))
            candidates.reset()
            spent["GBNF, llama.cpp"].append(
                milliseconds(lambda: llama_cpp.llama_sampler_apply(theirs, ctypes.byref(candidates.array)))
            )
            assert candidates.allowed()[token]
            llama_cpp.llama_sampler_accept(theirs, token)
            spent["accept"].append(milliseconds(lambda: schema.accept(token)))  # noqa: B023
            gbnf.accept(token)
    assert schema.failure is None
    assert gbnf.failure is None
    assert schema.is_finished
    return spent


def summary(times: list[float]) -> dict[str, float]:
    return {"median_ms": statistics.median(times), "mean_ms": statistics.fmean(times), "max_ms": max(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for model in MODELS.values():
        runner = load(model)
        grammars = GrammarCompiler(runner)
        table = milliseconds(lambda: grammars.compile(Regex("x")))  # noqa: B023
        print(f"{model.title}, {runner.num_vocab:,} tokens: table of tokens {table / 1e3:.1f} s")
        compiled = {what: milliseconds(lambda: grammars.compile(asked)) for what, asked in COMPILED.items()}  # noqa: B023
        for what, spent in compiled.items():
            print(f"  compile {what:<20} {spent:8.1f} ms")
        masks(runner, grammars)
        by_mask = {what: summary(times) for what, times in masks(runner, grammars).items()}
        for what, figures in by_mask.items():
            print(f"  {what:<28}" + "".join(f" {key[:-3]} {value:8.3f} ms" for key, value in figures.items()))
        results[model.name] = {"table_ms": table, "compile_ms": compiled, "masks": by_mask}
        runner.close()
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
