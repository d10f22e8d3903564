"""LlamaRunner with real weights and with tiny generated models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.protocol.engine import EngineSettings
from services.protocol.messages import FinishReason
from services.worker.engine.aho_corasick import AhoCorasick
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.runner import ModelUnusable, Span
from services.worker.engine.sequence import Sequence
from services.worker.output import OutputPipeline
from tests.ggufs import write_gguf
from tests.worker.engine.factories import GREEDY, completion, make_engine, make_sampler, run, step


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(smollm2_path, EngineSettings(context_tokens=512))
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaRunner]:
    path = write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")
    runner = LlamaRunner(path, EngineSettings(slots=4, context_tokens=128, batch_tokens=64))
    yield runner
    runner.close()


def ask(runner: LlamaRunner, question: str, *, max_tokens: int = 24, id: str = "s") -> Sequence:
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return Sequence(
        id,
        runner.tokenize(prompt, special=True),
        make_sampler(GREEDY, runner),
        max_tokens=max_tokens,
        context_tokens=runner.context_tokens,
    )


def text(runner: LlamaRunner, sequence: Sequence) -> str:
    return b"".join(runner.token_bytes(token) for token in completion(sequence)).decode()


def test_smollm2_answers_and_ends_its_answer(smollm2: LlamaRunner) -> None:
    engine, sequence = make_engine(smollm2), ask(smollm2, "What is the capital of France? Answer in one word.")
    engine.add(sequence)
    run(engine)
    assert "Paris" in text(smollm2, sequence)
    assert sequence.finish_reason is FinishReason.STOP


def test_eight_chats_in_one_batch_answer_as_they_do_alone(smollm2: LlamaRunner) -> None:
    questions = [f"Name the color of {thing}." for thing in ["grass", "snow", "coal", "blood", "gold", "milk", "sky", "rust"]]
    alone = []
    for question in questions:
        engine, sequence = make_engine(smollm2), ask(smollm2, question, max_tokens=6)
        engine.add(sequence)
        run(engine)
        alone.append(completion(sequence))
    engine = make_engine(smollm2, batch_tokens=512)
    together = [ask(smollm2, question, max_tokens=6, id=str(n)) for n, question in enumerate(questions)]
    for sequence in together:
        engine.add(sequence)
    steps = []
    while engine.has_work:
        steps.append(len(step(engine)))
    assert steps[0] == 8
    assert len(steps) <= 7
    # Batch shapes change the last digits of logits, so near-ties may fall the other way.
    same_first_token = [sequence.tokens[sequence.num_prompt_tokens] for sequence in together]
    assert sum(a[:1] == [b] for a, b in zip(alone, same_first_token, strict=True)) >= 7


def test_a_reused_prefix_gives_the_logits_of_a_full_prefill(tiny: LlamaRunner) -> None:
    tokens = tiny.tokenize("the quick brown fox jumps over", special=False)

    def logits(start: int) -> NDArray[np.float32]:
        span = Span(0, start, tokens[start:], True)
        row: NDArray[np.float32] = tiny.decode([span])[0].copy()
        return row

    tiny.cut(0, 0)
    full = logits(0)
    tiny.cut(0, 12)
    assert np.abs(logits(12) - full).max() < 1e-3


def test_other_slots_do_not_affect_a_sequence(tiny: LlamaRunner) -> None:
    tokens, other = tiny.tokenize("alone", special=False), tiny.tokenize("somebody else's words", special=False)

    def logits(*spans: Span) -> NDArray[np.float32]:
        for slot in range(4):
            tiny.cut(slot, 0)
        row: NDArray[np.float32] = tiny.decode(spans)[-1].copy()
        return row

    alone = logits(Span(1, 0, tokens, True))
    beside = logits(Span(0, 0, other, False), Span(1, 0, tokens, True))
    assert np.abs(alone - beside).max() < 1e-3


def test_multi_byte_text_survives_tokenization(smollm2: LlamaRunner) -> None:
    original = "naïve 🌳 日本語 Ωmega"
    pipeline = OutputPipeline(smollm2.token_bytes, AhoCorasick(()))
    deltas = [pipeline.push(token).text for token in smollm2.tokenize(original, special=False)]
    assert "".join(deltas) == original
    assert "" in deltas, "some character should have spanned tokens"


def test_control_tokens_are_parsed_only_if_special(smollm2: LlamaRunner) -> None:
    assert len(smollm2.tokenize("<|im_end|>", special=True)) == 1
    assert len(smollm2.tokenize("<|im_end|>", special=False)) > 1
    (end,) = smollm2.tokenize("<|im_end|>", special=True)
    assert end in smollm2.end_tokens
    assert smollm2.token_bytes(end) == b""


def test_bos_is_added_once(tiny: LlamaRunner) -> None:
    assert tiny.tokenize("a", special=True) == tiny.tokenize("<s>a", special=True)


def test_gemma3_has_no_chat_template_and_completes(gemma3_path: Path) -> None:
    runner = LlamaRunner(gemma3_path, EngineSettings(slots=2, context_tokens=256, batch_tokens=128))
    assert runner.chat_template is None
    prompt = runner.tokenize("1, 2, 3, 4, 5,", special=True)
    assert prompt[0] == runner.tokenize("<bos>", special=True)[0]
    sequence = Sequence("s", prompt, make_sampler(GREEDY, runner), max_tokens=4, context_tokens=256)
    engine = make_engine(runner)
    engine.add(sequence)
    run(engine)
    assert text(runner, sequence).startswith(" 6,")
    runner.close()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "corrupted or incomplete"),
        (lambda data: data[:100], "failed to read"),
        (lambda data: b"not a model" * 100, "magic"),
        (lambda data: b"", "load"),
    ],
    ids=["truncated", "header only", "no GGUF", "empty"],
)
def test_an_error_in_loading_gives_the_reason(tmp_path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelUnusable, match=reason):
        LlamaRunner(path, EngineSettings())


def test_the_context_is_limited_to_the_trained_context(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", context_length=100)
    runner = LlamaRunner(path, EngineSettings(slots=2, context_tokens=4096))
    assert runner.context_tokens == 100
    runner.close()
