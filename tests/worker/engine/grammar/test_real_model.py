"""The real 135M model at temperature 1, many answers at once: whatever it would rather say, what comes out validates."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import jsonschema
import numpy as np

from services.protocol.sampling import Constraint, Gbnf, JsonSchema, Regex
from services.worker.engine.grammar import GrammarCompiler, Matcher
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.scheduler import Span
from tests.worker.engine.grammar.schemas import schema

LONGEST = 120


@dataclass
class Answer:
    matcher: Matcher
    rng: np.random.Generator
    tokens: list[int]
    text: bytes = b""
    cached: int = 0
    is_complete: bool = field(default=False)


def answers(runner: LlamaRunner, prompts: list[str], matchers: list[Matcher], *, seed: int) -> list[bytes | None]:
    """One for each prompt, at temperature 1, all in one batch; None where it was not at its end after LONGEST tokens."""
    found = []
    for number, (prompt, matcher) in enumerate(zip(prompts, matchers, strict=True)):
        found.append(Answer(matcher, np.random.default_rng([seed, number]), runner.tokenize(prompt, special=True)))
        runner.cut(number, 0)
    for _ in range(LONGEST):
        running = [(slot, answer) for slot, answer in enumerate(found) if not answer.is_complete]
        if not running:
            break
        spans = [Span(None, slot, one.cached, one.tokens[one.cached :], True) for slot, one in running]  # type: ignore[arg-type]
        for (_, answer), logits in zip(running, runner.decode(spans), strict=True):
            _draw(runner, answer, logits)
    return [answer.text if answer.is_complete else None for answer in found]


def _draw(runner: LlamaRunner, answer: Answer, logits: np.ndarray) -> None:
    answer.cached = len(answer.tokens)
    mask = answer.matcher.mask()
    assert answer.matcher.failure is None
    odds = np.exp((logits - logits.max()).astype(np.float64))
    if mask is not None:
        odds = np.where(mask, np.exp((logits - logits[mask].max()).astype(np.float64)), 0)
    token = int(answer.rng.choice(len(odds), p=odds / odds.sum()))
    if token in runner.end_tokens:
        answer.is_complete = True
        return
    answer.matcher.accept(token)
    answer.tokens.append(token)
    answer.text += runner.token_bytes(token)


def asked(request: str) -> str:
    return f"<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n"


def test_answers_to_schemas_validate(smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler) -> None:
    complete = 0
    for round_ in range(3):
        schemas = [schema(random.Random(f"{round_} {number}")) for number in range(16)]
        matchers = [smollm2_grammars.compile(JsonSchema(one)).matcher() for one in schemas]
        for one, answer in zip(schemas, answers(smollm2, [asked("JSON, please.")] * 16, matchers, seed=round_), strict=True):
            if answer is not None:
                jsonschema.Draft202012Validator(one).validate(json.loads(answer))
                complete += 1
    assert complete >= 40


def test_other_grammars(smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler) -> None:
    moves = 'root ::= ("1. " move " " move "\\n")\nmove ::= [NBRQK]? [a-h] [1-8] | "O-O"'
    cases: list[tuple[Constraint, Callable[[str], object]]] = [
        (Regex("[0-9]{3}-[0-9]{4}"), lambda text: len(text) == 8 and text.replace("-", "").isdigit()),
        (Gbnf(moves), lambda text: text.startswith("1. ") and text.endswith("\n") and len(text.split()) == 3),
        (Regex("(Paris|Rome)"), lambda text: text in ("Paris", "Rome")),
    ]
    cases *= 3
    matchers = [smollm2_grammars.compile(constraint).matcher() for constraint, _ in cases]
    found = answers(smollm2, [asked("Say something.")] * len(matchers), matchers, seed=9)
    for (_, is_right), answer in zip(cases, found, strict=True):
        assert answer is not None
        assert is_right(answer.decode()), answer


def test_behind_its_reasoning_the_answer_validates(smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler) -> None:
    """The marker is a word that the model is sure to use."""
    grammar = smollm2_grammars.compile(
        JsonSchema({"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]})
    )
    matchers = [grammar.matcher(b" the") for _ in range(8)]
    found = answers(smollm2, [asked("Tell me about the sea and the sun.")] * 8, matchers, seed=3)
    complete = [text.partition(b" the") for text in found if text is not None and b" the" in text]
    assert len(complete) >= 4
    for _, _, answer in complete:
        assert isinstance(json.loads(answer)["x"], bool)
