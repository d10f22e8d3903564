"""Forced calls with a real model whose template has no tools: SmolLM2-135M-Instruct."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from services.protocol.engine import EngineSettings
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Tool, ToolChoice
from services.protocol.sampling import SamplingParams, StopConditions
from services.worker.engine.grammar import GrammarCompiler
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.runner import Span
from services.worker.engine.sampling import Sampler, Stages
from services.worker.prompt import PromptBuilder
from tests.worker.chat.answers import WEATHER
from tests.worker.chat.templates import template_of

FORECAST = Tool(
    "forecast",
    "Tells tomorrow's weather.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 30},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "hours": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 23}, "maxItems": 3},
        },
        "required": ["city", "unit"],
    },
)


@pytest.fixture(scope="module")
def runner(smollm2_path: Path) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(smollm2_path, EngineSettings(slots=1, context_tokens=1024, threads=1))
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def grammars(runner: LlamaRunner) -> GrammarCompiler:
    return GrammarCompiler(runner)


def called(
    runner: LlamaRunner, grammars: GrammarCompiler, question: str, choice: ToolChoice, seed: int
) -> list[tuple[str, str]]:
    """The names and arguments of the model's calls; asserts that its text has nothing else."""
    prompt = ChatPrompt((ChatMessage("user", question),), (WEATHER, FORECAST), choice, parallel_tool_calls=False)
    request = GenerateRequest(id="r", version="v", gateway="g", caller="c", prompt=prompt)
    assert runner.chat_template is not None
    template = template_of(runner.chat_template, bos_text=runner.bos_text, eos_text=runner.eos_text)
    prepared = PromptBuilder(runner, template).prepare(request)
    assert prepared.constraint is not None
    matcher = grammars.compile(prepared.constraint).matcher(prepared.after)
    sampler = Sampler(
        Stages(SamplingParams(seed=seed), runner.token_text),
        StopConditions(),
        end_tokens=runner.end_tokens,
        grammar=matcher,
    )
    output, tokens, start, released = prepared.output(0), list(prepared.tokens), 0, []
    runner.cut(0, 0)
    while len(tokens) < runner.context_tokens:
        logits = runner.decode([Span(0, start, tokens[start:], True)])[0]
        start = len(tokens)
        token = sampler.sample(logits, tokens, len(prepared.tokens)).token
        sampler.accept(token)
        if token in runner.end_tokens:
            break
        tokens.append(token)
        released.append(output.push(token))
    released.append(output.flush())
    assert output.saw_tool_calls
    assert not any(delta.text or delta.reasoning for delta in released)
    pieces = [call for delta in released for call in delta.tool_calls]
    return [
        (call.name, "".join(piece.arguments for piece in pieces if piece.index == call.index)) for call in pieces if call.name
    ]


@pytest.mark.parametrize("choice", [ToolChoice("required"), ToolChoice("required", "forecast")], ids=["required", "named"])
def test_a_forced_call_is_valid(runner: LlamaRunner, grammars: GrammarCompiler, choice: ToolChoice) -> None:
    schemas = {tool.name: tool.parameters for tool in (WEATHER, FORECAST)}
    for seed, place in enumerate(["Paris", "Tokyo"]):
        calls = called(runner, grammars, f"How is the weather in {place}?", choice, seed)
        assert [name for name, _ in calls] == ([choice.name] if choice.name else [calls[0][0]])
        jsonschema.validate(json.loads(calls[0][1]), schemas[calls[0][0]])
