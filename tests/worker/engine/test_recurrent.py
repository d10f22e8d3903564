"""The engine on a recurrent model: its state can be continued, but neither truncated nor shared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.protocol.engine import EngineSettings
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.sequence import Sequence
from tests.ggufs import write_mamba
from tests.worker.engine.factories import GREEDY, completion, make_engine, make_sampler, run


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaRunner]:
    path = write_mamba(tmp_path_factory.mktemp("model") / "mamba.gguf")
    runner = LlamaRunner(path, EngineSettings(slots=3, context_tokens=128, batch_tokens=64))
    yield runner
    runner.close()


def make(runner: LlamaRunner, tokens: list[int], *, max_tokens: int = 6) -> Sequence:
    sampler = make_sampler(GREEDY, runner)
    return Sequence("s", tokens, sampler, max_tokens=max_tokens, context_tokens=runner.context_tokens)


def alone(runner: LlamaRunner, tokens: list[int]) -> list[int]:
    engine, sequence = make_engine(runner), make(runner, tokens)
    engine.add(sequence)
    run(engine)
    return completion(sequence)


def test_texts_in_one_batch_are_answered_as_they_are_alone(runner: LlamaRunner) -> None:
    prompts = [runner.tokenize(text, special=True) for text in ("one text", "another one", "and a third")]
    expected = [alone(runner, prompt) for prompt in prompts]
    engine = make_engine(runner)
    sequences = [make(runner, prompt) for prompt in prompts]
    for sequence in sequences:
        engine.add(sequence)
    run(engine)
    assert [completion(sequence) for sequence in sequences] == expected


def test_a_continued_turn_reuses_the_state_and_an_edited_one_does_not(runner: LlamaRunner) -> None:
    engine, first = make_engine(runner), make(runner, runner.tokenize("a first turn", special=True))
    engine.add(first)
    run(engine)
    onward = make(runner, [*first.tokens, *runner.tokenize(" and more", special=False)[1:]])
    back = make(runner, [*first.tokens[:8], 50, 51])
    for sequence in (onward, back):
        engine.add(sequence)
        run(engine)
    assert (onward.num_cached, back.num_cached) == (len(first.tokens) - 1, 0)
    assert completion(onward) == alone(runner, onward.tokens[: onward.num_prompt_tokens])
    assert completion(back) == alone(runner, back.tokens[: back.num_prompt_tokens])
