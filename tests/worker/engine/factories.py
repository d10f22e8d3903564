"""Factories of sequences and engines."""

from __future__ import annotations

from collections.abc import Sequence as TokenIds

from services.protocol.sampling import SamplingParams, StopConditions
from services.worker.engine.engine import Engine
from services.worker.engine.fake import END, FakeRunner, babble
from services.worker.engine.runner import ModelRunner
from services.worker.engine.sampling import Sampler, Stages
from services.worker.engine.scheduler import SampledToken
from services.worker.engine.sequence import Sequence

GREEDY = SamplingParams(temperature=0)


def make_sampler(sampling: SamplingParams = GREEDY, runner: ModelRunner | None = None) -> Sampler:
    runner = runner or FakeRunner()
    return Sampler(Stages(sampling, runner.token_text), StopConditions(), end_tokens=runner.end_tokens)


def make_sequence(
    prompt: str | TokenIds[int],
    *,
    id: str = "s",
    max_tokens: int | None = 8,
    sampling: SamplingParams = GREEDY,
    context_tokens: int = 4096,
    keep_tokens: int | None = None,
) -> Sequence:
    ids = list(prompt.encode()) if isinstance(prompt, str) else list(prompt)
    return Sequence(
        id, ids, make_sampler(sampling), max_tokens=max_tokens, context_tokens=context_tokens, keep_tokens=keep_tokens
    )


def make_engine(runner: ModelRunner | None = None, *, batch_tokens: int = 64, prefill_tokens: int = 16) -> Engine:
    return Engine(runner or FakeRunner(), batch_tokens=batch_tokens, prefill_s=1.0, prefill_tokens=prefill_tokens)


def ends_after(count: int, prompt: str) -> FakeRunner:
    """A model that generates `count` tokens after `prompt` and then ends the text."""
    return FakeRunner(script=lambda tokens: END if len(tokens) >= len(prompt) + count else babble(tokens))


def step(engine: Engine) -> list[SampledToken]:
    engine.admit()
    return engine.step().sampled


def run(engine: Engine) -> None:
    while engine.has_work:
        step(engine)


def completion(sequence: Sequence) -> list[int]:
    return sequence.tokens[len(sequence.tokens) - sequence.num_generated :]


def solo(prompt: str, *, max_tokens: int = 8, sampling: SamplingParams = GREEDY) -> list[int]:
    """The fake model's output if nothing else is in the batch."""
    engine, sequence = make_engine(), make_sequence(prompt, max_tokens=max_tokens, sampling=sampling)
    engine.add(sequence)
    run(engine)
    return completion(sequence)
