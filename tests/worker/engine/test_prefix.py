"""A cached prefix compared with a computed one, on real weights with full and with sliding-window attention.

llama.cpp's kernels round differently for batches of other shapes. So there are two claims: if the prompt is split into the same
batches, the logits after a cached prefix equal those after a computed one, bit for bit; compared with a prompt in a single
batch they differ by rounding, which may decide a near-tie. The same holds for every later step: attention over 512 or more
cells, of any sequence, is summed in two parts. The prompts are such that the models can continue them with confidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as TokenIds
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.protocol.engine import EngineSettings
from services.protocol.sampling import SamplingParams, StopConditions
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.runner import Span
from services.worker.engine.sampling import Sampled, Sampler, Stages
from services.worker.engine.sequence import Sequence
from tests.worker.engine.factories import completion, make_engine, run

#: Measured over 24 prompts: at most 1.21 for any token of the vocabulary, and 0.44 for the log-probability of the ten
#: likeliest.
LOGIT_BOUND = 2.0
LOGPROB_BOUND = 0.75

PREFIX = "You answer questions about the world in one short sentence, truthfully, and you say so where you do not know."
PLACES = ["France", "Italy", "Japan", "Egypt", "Spain", "Russia", "China", "Greece", "Germany", "England"]
QUESTIONS = [
    *(f" The capital of {place} is" for place in PLACES),
    *(f" {start}, {start + 1}, {start + 2}, {start + 3}, {start + 4}," for start in range(10, 110, 10)),
    *(
        f" {word} {word} {word} {word} {word}"
        for word in ["one", "red", "dog", "sun", "yes", "the", "run", "blue", "sea", "tree"]
    ),
    *(
        f" {words} {words} {words} {words} {words.split()[0]}"
        for words in [
            *["alpha beta gamma", "spoon fork knife", "one two three", "cat dog bird", "up down left", "tea milk bread"],
            *["king queen prince", "sun moon star", "iron gold silver", "spring summer autumn"],
        ]
    ),
]


@pytest.fixture(scope="module", params=["smollm2_path", "gemma3_path"], ids=["SmolLM2", "Gemma 3"])
def runner(request: pytest.FixtureRequest) -> Iterator[LlamaRunner]:
    """One thread: two threads wait for each other at every layer if another test uses their core. The results are the same."""
    path: Path = request.getfixturevalue(request.param)
    runner = LlamaRunner(path, EngineSettings(slots=8, context_tokens=512, threads=1))
    yield runner
    runner.close()


def prompt(runner: LlamaRunner, question: str) -> list[int]:
    return runner.tokenize(PREFIX + question, special=True)


def fill(runner: LlamaRunner, slot: int, start: int, tokens: list[int]) -> NDArray[np.float32]:
    row: NDArray[np.float32] = runner.decode([Span(slot, start, tokens, True)])[0].copy()
    return row


def empty(runner: LlamaRunner) -> None:
    for slot in range(runner.num_slots):
        runner.cut(slot, 0)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64) - logits.max()
    return np.asarray(wide - np.log(np.exp(wide).sum()))


@pytest.mark.parametrize("question", QUESTIONS[::17])
def test_logits_after_a_cached_prefix_equal_those_after_a_computed_one(runner: LlamaRunner, question: str) -> None:
    tokens = prompt(runner, question)
    cut = len(prompt(runner, "")) - 1
    empty(runner)
    fill(runner, 0, 0, tokens[:cut])
    computed = fill(runner, 0, cut, tokens[cut:])

    runner.cut(0, cut)  # reused in the same slot; the tokens after the prefix are dropped
    assert np.array_equal(fill(runner, 0, cut, tokens[cut:]), computed)

    runner.share(0, 1, cut)  # shared with another slot, while the first one keeps its cells
    assert np.array_equal(fill(runner, 1, cut, tokens[cut:]), computed)

    empty(runner)
    in_one_batch = fill(runner, 0, 0, tokens)
    assert np.abs(in_one_batch - computed).max() < LOGIT_BOUND
    likeliest = np.argsort(-in_one_batch)[:10]
    assert np.abs(log_softmax(in_one_batch) - log_softmax(computed))[likeliest].max() < LOGPROB_BOUND


class Greedy(Sampler):
    """Records the log-probabilities of the two likeliest tokens at each step."""

    def __init__(self, runner: LlamaRunner) -> None:
        stages = Stages(SamplingParams(temperature=0), runner.token_text)
        super().__init__(stages, StopConditions(), end_tokens=runner.end_tokens, top_logprobs=5)
        self.top: list[dict[int, float]] = []

    def sample(self, logits: NDArray[np.float32], tokens: TokenIds[int], num_prompt_tokens: int) -> Sampled:
        sampled = super().sample(logits, tokens, num_prompt_tokens)
        self.top.append(dict(sampled.top))
        return sampled


def answers(runner: LlamaRunner, *, cached: bool) -> list[tuple[list[int], Greedy]]:
    """The answers one after the other, on a cache that is kept, or each with an empty cache."""
    engine, found = make_engine(runner, batch_tokens=512), []
    for question in QUESTIONS:
        if not cached:
            engine = make_engine(runner, batch_tokens=512)
        sampler = Greedy(runner)
        sequence = Sequence(question, prompt(runner, question), sampler, max_tokens=8, context_tokens=512)
        engine.add(sequence)
        run(engine)
        assert bool(sequence.num_cached) == (cached and question != QUESTIONS[0])
        found.append((completion(sequence), sampler))
    return found


def test_greedy_texts_after_a_cached_prefix_differ_only_at_near_ties(runner: LlamaRunner) -> None:
    computed, cached = answers(runner, cached=False), answers(runner, cached=True)
    different = 0
    for (alone, sampler), (shared, _) in zip(computed, cached, strict=True):
        if alone != shared:
            different += 1
            at = next(index for index, (a, b) in enumerate(zip(alone, shared, strict=False)) if a != b)
            gap = sampler.top[at][alone[at]] - sampler.top[at][shared[at]]
            assert gap < LOGPROB_BOUND, f"{alone} and {shared} differ at {at}, by {gap:.2f}"
    assert different <= 2, f"{different} of 40 texts differ"
