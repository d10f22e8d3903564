"""An answer that another worker continues, compared with the same answer undisturbed: how often are the texts identical?

    python benchmarks/resume.py [--model NAME] [--prompts N] [--tokens N] [--json FILE]

Two engines with separate weights represent two workers. The first generates an answer, greedily and alone. The second gets the prompt
and the first 8, 24 or 48 tokens of the answer and continues it: once `exact` (these tokens are computed one by one, as before) and once
`batched` (they are computed together with the prompt). In both modes the client keeps the tokens that it has; the measure is whether the
rest is the same, token by token. Takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path

from comparison.models import MODELS
from comparison.prompts import prose, question
from services.protocol.engine import EngineSettings
from services.protocol.sampling import SamplingParams, StopConditions
from services.worker.engine.engine import Engine
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.sampling import Sampler, Stages
from services.worker.engine.sequence import Sequence

COMMITTED = (8, 24, 48)
MODES = ("exact", "batched")
BATCH_TOKENS = 512
SETTINGS = EngineSettings(slots=2, context_tokens=1024, batch_tokens=BATCH_TOKENS, threads=len(os.sched_getaffinity(0)))


def generate(runner: LlamaRunner, prompt: list[int], *, tokens: int, committed: list[int], exactly: bool) -> list[int]:
    """The whole answer, generated alone and with an empty cache."""
    engine = Engine(runner, batch_tokens=BATCH_TOKENS, prefill_s=0.25)
    sampler = Sampler(
        Stages(SamplingParams(temperature=0), runner.token_text),
        StopConditions(tokens, ignore_eos=True),
        end_tokens=runner.end_tokens,
    )
    sequence = Sequence("one", prompt, sampler, max_tokens=tokens, context_tokens=runner.context_tokens)
    sequence.resume(committed, exactly=exactly)
    engine.add(sequence)
    while engine.has_work:
        engine.admit()
        engine.step()
    return sequence.tokens[len(prompt) :]


def prompts_of(runner: LlamaRunner, count: int) -> list[list[int]]:
    """Questions after texts of 13 to 200 tokens."""
    texts = [f"{prose(f'resume {n}', 13 * (1 + n))}\n\n{question(f'resume {n}')}\n\n" for n in range(count)]
    return [runner.tokenize(text, special=False) for text in texts]


def measure(model: str, *, prompts: int, tokens: int) -> dict[str, dict[str, int]]:
    """By number of committed tokens and mode, how many answers were identical."""
    path = MODELS[model].fetch()
    first, second = LlamaRunner(path, SETTINGS), LlamaRunner(path, SETTINGS)
    same: Counter[tuple[int, str]] = Counter()
    try:
        for prompt in prompts_of(first, prompts):
            answer = generate(first, prompt, tokens=tokens, committed=[], exactly=True)
            for committed in COMMITTED:
                for mode in MODES:
                    given = answer[:committed]
                    resumed = generate(second, prompt, tokens=tokens, committed=given, exactly=mode == "exact")
                    assert resumed[:committed] == given
                    same[committed, mode] += resumed == answer
    finally:
        first.close()
        second.close()
    return {str(committed): {mode: same[committed, mode] for mode in MODES} for committed in COMMITTED}


def show(title: str, table: dict[str, dict[str, int]], prompts: int) -> None:
    print(f"\n{title}: identical answers of {prompts}")
    print(f"{'committed':>12}" + "".join(f"{mode:>10}" for mode in MODES))
    for committed, counts in table.items():
        print(f"{committed:>12}" + "".join(f"{counts[mode]:>10}" for mode in MODES))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS, help="instead of both; may be repeated")
    parser.add_argument("--prompts", type=int, default=16, help="answers for each model (default: 16)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args()
    started, tables = time.monotonic(), {}
    for model in options.model or MODELS:
        tables[model] = measure(model, prompts=options.prompts, tokens=options.tokens)
        show(MODELS[model].title, tables[model], options.prompts)
    print(f"\n{time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps({"prompts": options.prompts, "identical": tables}, indent=2) + "\n")


if __name__ == "__main__":
    main()
