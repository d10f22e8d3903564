"""SmolLM2-135M at temperature 1, many answers in one batch: every finished answer validates."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

import jsonschema
import numpy as np

from services.protocol.sampling import Constraint, Gbnf, JsonSchema, Regex
from services.worker.engine.grammar import GrammarCompiler, Matcher
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.runner import Span
from tests.worker.engine.schema.schemas import schema

LONGEST = 100


@dataclass
class Answer:
    matcher: Matcher
    rng: np.random.Generator
    tokens: list[int]
    cached: int = 0
    text: bytes = b""
    is_complete: bool = False
    num_tokens: int = 0


def answers(runner: LlamaRunner, prompt: str, matchers: list[Matcher], *, seed: int) -> list[bytes | None]:
    """The answers at temperature 1, one per matcher, batched over all slots; None for an answer that has not ended after
    LONGEST tokens."""
    tokens = runner.tokenize(prompt, special=True)
    found = [Answer(matcher, np.random.default_rng([seed, n]), list(tokens)) for n, matcher in enumerate(matchers)]
    waiting = found[::-1]
    running: dict[int, Answer] = {}
    while waiting or running:
        for slot in set(range(runner.max_running)) - running.keys():
            if waiting:
                runner.cut(slot, 0)
                running[slot] = waiting.pop()
        spans = [Span(slot, one.cached, one.tokens[one.cached :], True) for slot, one in running.items()]
        for answer, logits in zip(running.values(), runner.decode(spans), strict=True):
            _draw(runner, answer, logits)
        running = {slot: one for slot, one in running.items() if not one.is_complete and one.num_tokens < LONGEST}
    return [answer.text if answer.is_complete else None for answer in found]


def _draw(runner: LlamaRunner, answer: Answer, logits: np.ndarray) -> None:
    answer.cached = len(answer.tokens)
    mask = answer.matcher.mask()
    assert answer.matcher.failure is None
    ids = np.arange(len(logits)) if mask is None else np.flatnonzero(mask)
    odds = np.exp((logits[ids] - logits[ids].max()).astype(np.float64))
    token = int(answer.rng.choice(ids, p=odds / odds.sum()))
    if token in runner.end_tokens:
        answer.is_complete = True
        return
    answer.matcher.accept(token)
    answer.tokens.append(token)
    answer.num_tokens += 1
    answer.text += runner.token_bytes(token)


def asked(request: str) -> str:
    return f"<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n"


def test_answers_to_schemas_validate(smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler) -> None:
    schemas = [schema(random.Random(number), depth=2) for number in range(64)]
    matchers = [smollm2_grammars.compile(JsonSchema(one)).matcher() for one in schemas]
    found = answers(smollm2, asked("JSON, please."), matchers, seed=1)
    for one, answer in zip(schemas, found, strict=True):
        if answer is not None:
            jsonschema.Draft202012Validator(one).validate(json.loads(answer))
    assert sum(answer is not None for answer in found) >= 56


def test_answers_match_other_grammars(smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler) -> None:
    moves = 'root ::= ("1. " move " " move "\\n")\nmove ::= [NBRQK]? [a-h] [1-8] | "O-O"'
    cases: list[tuple[Constraint, Callable[[str], object]]] = [
        (Regex("[0-9]{3}-[0-9]{4}"), lambda text: len(text) == 8 and text.replace("-", "").isdigit()),
        (Gbnf(moves), lambda text: text.startswith("1. ") and text.endswith("\n") and len(text.split()) == 3),
        (Regex("(Paris|Rome)"), lambda text: text in ("Paris", "Rome")),
    ]
    cases *= 3
    matchers = [smollm2_grammars.compile(constraint).matcher() for constraint, _ in cases]
    found = answers(smollm2, asked("Say something."), matchers, seed=9)
    for (_, is_right), answer in zip(cases, found, strict=True):
        assert answer is not None
        assert is_right(answer.decode()), answer


def test_answers_after_reasoning_validate(smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler) -> None:
    """The marker is a word that the model certainly uses."""
    grammar = smollm2_grammars.compile(
        JsonSchema({"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]})
    )
    matchers = [grammar.matcher(b" the") for _ in range(8)]
    found = answers(smollm2, asked("Tell me about the sea and the sun."), matchers, seed=3)
    complete = [text.partition(b" the") for text in found if text is not None and b" the" in text]
    assert len(complete) >= 4
    for _, _, answer in complete:
        assert isinstance(json.loads(answer)["x"], bool)
