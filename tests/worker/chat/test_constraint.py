"""Forced calls, strict arguments and structured answers: the family's parser reads everything that the grammar allows."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from services.protocol.errors import BadRequest
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Tool, ToolChoice
from services.protocol.sampling import Constraint, Gbnf, JsonObject, JsonSchema, Lark, Regex
from services.worker.chat.answer_format import format_of
from services.worker.chat.constraint import AnswerRequirements, effective
from services.worker.chat.reasoning import Phase
from services.worker.engine.grammar import GrammarCompiler
from services.worker.prompt import Preparation, PromptBuilder
from tests.worker.chat.answers import Answer
from tests.worker.chat.templates import CHATML, HERMES, TEMPLATES, template_of
from tests.worker.chat.vocabularies import ControlRunner, babble, deltas

#: Covers texts, numbers, enums, lists, objects, references and optional properties.
ORDER = Tool(
    "place_order",
    "Orders.",
    {
        "type": "object",
        "properties": {
            "item": {"type": "string", "description": "What."},
            "count": {"type": "integer"},
            "price": {"type": "number"},
            "size": {"type": "string", "enum": ["S", "M", "L"]},
            "gift": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "place": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "zip": {"type": "integer"}},
                "required": ["city"],
            },
        },
        "required": ["item", "size", "tags", "place"],
    },
)
NESTED = Tool(
    "look_up",
    parameters={
        "type": "object",
        "properties": {"where": {"$ref": "#/$defs/Place"}},
        "required": ["where"],
        "$defs": {"Place": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
    },
)
CLOCK = Tool("clock")
TOOLS = (ORDER, CLOCK)
REQUIRED = ToolChoice("required")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
HI = (ChatMessage("user", "hi"),)

#: The control tokens of each family. Without them, markers are text; in a real vocabulary some or all are control tokens.
CONTROL = {
    "hermes": ["<tool_call>", "</tool_call>"],
    "generic": ["<tool_call>", "</tool_call>"],
    "qwen-coder": ["<tool_call>", "</tool_call>"],
    "llama3": ["<|python_tag|>"],
    "mistral": ["[TOOL_CALLS]"],
    "mistral-args": ["[TOOL_CALLS]", "[ARGS]"],
    "deepseek-v3": [
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ],
    "deepseek-v3.1": [
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ],
    "harmony": ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"],
    "gemma4": ["<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"],
    "function-gemma": ["<start_function_call>", "<end_function_call>", "<escape>"],
}
WISHES = [
    *('"', '"}', "</parameter>\n", "\n</parameter>", "<escape>", '<|"|>', "]", "}", "1", "<tool_call>", "[TOOL_CALLS]"),
    *(
        "</think>",
        "<think>",
        "<channel|>",
        "<|end|>",
        "<|channel|>final<|message|>",
        "<|channel|>commentary",
        "<｜tool▁calls▁begin｜>",
    ),
]


def prepare(runner: ControlRunner, template: str, constraint: Constraint | None = None, **prompt: Any) -> Preparation:
    chat = ChatPrompt(HI, **prompt)
    request = GenerateRequest(id="r", version="v", gateway="g", caller="c", prompt=chat, constraint=constraint)
    return PromptBuilder(runner, template_of(template)).prepare(request)


def answers(runner: ControlRunner, preparation: Preparation, *, times: int = 4) -> list[Answer]:
    """The answers to random tokens drawn under the constraint."""
    found = []
    constraint = preparation.constraint
    grammar = GrammarCompiler(runner).compile(constraint) if constraint else None
    for seed in range(times):
        matcher = grammar.matcher(preparation.after) if grammar else None
        tokens = babble(runner, matcher, WISHES, seed=seed)
        assert matcher is None or matcher.failure is None
        found.append(_answer(deltas(preparation.output(0), tokens)))
    return found


def _answer(released: list[Any]) -> Answer:
    answer = Answer()
    for delta in released:
        answer.content += delta.text
        answer.reasoning += delta.reasoning
        for call in delta.tool_calls:
            if call.name:
                answer.calls.append([call.name, ""])
            answer.calls[call.index][1] += call.arguments
    return answer


def check_call(call: list[str], tools: tuple[Tool, ...]) -> None:
    tool = next(tool for tool in tools if tool.name == call[0])
    jsonschema.validate(json.loads(call[1]), tool.parameters)


@pytest.mark.parametrize(
    ("family", "in_control"),
    [(family, in_control) for family in TEMPLATES for in_control in (False, True) if in_control or family != "harmony"],
)
def test_a_forced_call_is_a_call_with_valid_arguments(family: str, in_control: bool) -> None:
    runner = ControlRunner(CONTROL[family] if in_control else ())
    preparation = prepare(runner, TEMPLATES[family], tools=TOOLS, tool_choice=REQUIRED, thinking=False)
    for answer in answers(runner, preparation):
        assert answer.content == ""
        assert answer.calls
        for call in answer.calls:
            check_call(call, TOOLS)


@pytest.mark.parametrize("family", TEMPLATES)
def test_null_keywords_of_a_forced_tool_are_absent(family: str) -> None:
    def constraint(parameters: dict[str, Any]) -> object:
        tools = (Tool("f", parameters=parameters),)
        return prepare(ControlRunner(CONTROL[family]), TEMPLATES[family], tools=tools, tool_choice=REQUIRED).constraint

    plain = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    nulls = {"$defs": None, "additionalProperties": None, "not": None, "description": None}
    nested = {"n": {"type": "integer", "enum": None, "format": None, "default": None}}
    assert constraint({**plain, **nulls, "properties": nested}) == constraint(plain)
    assert constraint({"type": None, "properties": None, "required": None}) == constraint({})


def test_the_schemas_of_forced_tools_share_a_limit() -> None:
    tools = tuple(Tool(f"f{n}", parameters={"type": "object", "properties": {"a": {"enum": ["x" * 1000]}}}) for n in range(300))
    format = format_of(HERMES, shows_calls=True)

    def forced(choice: ToolChoice) -> AnswerRequirements:
        return AnswerRequirements(None, tools, choice, parallel=True, may_reason=False, control={})

    with pytest.raises(BadRequest, match="their schemas are larger than 256 KiB together"):
        effective(format, Phase.ANSWERING, forced(REQUIRED))
    assert effective(format, Phase.ANSWERING, forced(ToolChoice("required", "f7"))).constraint


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_truncated_forced_call_is_never_content(family: str) -> None:
    runner = ControlRunner(CONTROL[family])
    preparation = prepare(runner, TEMPLATES[family], tools=TOOLS, tool_choice=REQUIRED, thinking=False)
    assert preparation.constraint is not None
    tokens = babble(runner, GrammarCompiler(runner).compile(preparation.constraint).matcher(), WISHES, seed=1)
    for length in range(min(len(tokens), 120)):
        assert _answer(deltas(preparation.output(0), tokens[:length])).content == ""


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_named_tool_is_called_once(family: str) -> None:
    runner = ControlRunner(CONTROL[family])
    choice = ToolChoice("required", "look_up")
    for answer in answers(runner, prepare(runner, TEMPLATES[family], tools=(*TOOLS, NESTED), tool_choice=choice)):
        assert [call[0] for call in answer.calls] == ["look_up"]
        if family not in {"gemma4", "function-gemma"}:  # their notation has no references, so any value is accepted
            check_call(answer.calls[0], (NESTED,))


def test_one_call_without_parallel_tool_calls() -> None:
    runner = ControlRunner()
    for parallel, counts in ((False, {1}), (True, {1, 2, 3})):
        preparation = prepare(
            runner, HERMES, tools=(CLOCK,), tool_choice=REQUIRED, parallel_tool_calls=parallel, thinking=False
        )
        assert isinstance(preparation.constraint, Lark)
        text = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
        matcher = GrammarCompiler(runner).compile(preparation.constraint).matcher()
        for byte in text.encode():
            matcher.accept(byte)
        assert matcher.failure is None
        assert matcher.is_finished == (counts == {1})


def test_a_model_without_tools_calls_in_hermes_syntax() -> None:
    runner = ControlRunner()
    preparation = prepare(runner, CHATML, tools=TOOLS, tool_choice=REQUIRED)
    assert b"<tools>" in bytes(preparation.tokens)
    for answer in answers(runner, preparation):
        for call in answer.calls:
            check_call(call, TOOLS)


@pytest.mark.parametrize("family", ["hermes", "qwen-coder", "mistral", "deepseek-v3.1", "gemma4"])
def test_strict_arguments_are_valid_in_optional_calls(family: str) -> None:
    strict = Tool(ORDER.name, ORDER.description, ORDER.parameters, strict=True)
    runner = ControlRunner(CONTROL[family])
    preparation = prepare(runner, TEMPLATES[family], tools=(strict,), thinking=False)
    assert preparation.constraint is not None
    compiled = GrammarCompiler(runner).compile(preparation.constraint)
    trigger = next(
        marker
        for marker in ("<tool_call>", "[TOOL_CALLS]", "<｜tool▁calls▁begin｜>", "<|tool_call>")
        if marker in CONTROL[family]
    )
    for seed in range(3):
        matcher = compiled.matcher(preparation.after)
        before = runner.tokenize("Well, {} <tool> " + trigger, special=True)
        for token in before:
            matcher.accept(token)
        answer = _answer(deltas(preparation.output(0), before + babble(runner, matcher, WISHES, seed=seed)))
        assert answer.content == "Well, {} <tool>"
        check_call(answer.calls[0], (ORDER,))


def test_tools_that_are_not_strict_set_no_constraint() -> None:
    assert prepare(ControlRunner(), HERMES, tools=TOOLS).constraint is None
    assert prepare(ControlRunner(), HERMES, tools=TOOLS, tool_choice=ToolChoice("none")).constraint is None


@pytest.mark.parametrize("family", ["hermes", "harmony", "llama3"])
@pytest.mark.parametrize("constraint", [JsonObject(), JsonSchema(SCHEMA), Regex(r'\{"a": [0-9]{1,3}/?\}')])
def test_structured_content_may_follow_reasoning(family: str, constraint: Constraint) -> None:
    runner = ControlRunner(CONTROL[family])
    reasoned = []
    for answer in answers(runner, prepare(runner, TEMPLATES[family], constraint), times=12):
        assert answer.content.startswith("{")
        assert not answer.calls
        reasoned.append(bool(answer.reasoning))
        if isinstance(constraint, JsonSchema):
            jsonschema.validate(json.loads(answer.content), SCHEMA)
    assert any(reasoned) == (family != "llama3")


def test_reasoning_before_structured_content_is_accepted() -> None:
    runner = ControlRunner()
    compiled = GrammarCompiler(runner).compile(prepare(runner, HERMES, JsonSchema(SCHEMA)).constraint or JsonObject())
    matcher = compiled.matcher()
    for byte in b'<think>\nhm</think>\n\n{"a": 1}':
        matcher.accept(byte)
    assert matcher.failure is None
    assert matcher.is_finished


def test_with_tools_the_answer_is_a_call_or_matches_the_schema() -> None:
    runner = ControlRunner()
    preparation = prepare(runner, HERMES, JsonSchema(SCHEMA), tools=TOOLS, thinking=False)
    kinds = set()
    for answer in answers(runner, preparation, times=12):
        kinds.add(bool(answer.calls))
        if answer.calls:
            check_call(answer.calls[0], TOOLS)
        else:
            jsonschema.validate(json.loads(answer.content), SCHEMA)
    assert kinds == {True, False}


@pytest.mark.parametrize("constraint", [JsonSchema(SCHEMA), Gbnf('root ::= "{}"'), Lark('start: "{}"')])
def test_a_constraint_starts_after_the_reasoning_that_the_prompt_opened(constraint: Constraint) -> None:
    runner = ControlRunner()
    preparation = prepare(runner, TEMPLATES["deepseek-v3.1"], constraint, thinking=True)
    assert (preparation.constraint, preparation.after) == (constraint, b"</think>")
    answer = answers(runner, preparation, times=1)[0]
    assert answer.reasoning
    assert answer.content.startswith("{")
    closed = prepare(runner, TEMPLATES["deepseek-v3.1"], constraint, thinking=False)
    assert (closed.constraint, closed.after) == (constraint, None)


def test_a_forced_call_starts_after_the_reasoning_that_the_prompt_opened() -> None:
    runner = ControlRunner(["</think>"])
    preparation = prepare(runner, TEMPLATES["deepseek-v3.1"], tools=TOOLS, tool_choice=REQUIRED, thinking=True)
    assert preparation.after == b"</think>"
    for answer in answers(runner, preparation):
        assert not answer.content
        check_call(answer.calls[0], TOOLS)


def test_a_gbnf_grammar_starts_at_harmonys_final_message() -> None:
    preparation = prepare(ControlRunner(CONTROL["harmony"]), TEMPLATES["harmony"], Gbnf('root ::= "{}"'))
    assert preparation.after == b"<|channel|>final<|message|>"
    assert prepare(ControlRunner(), HERMES, Gbnf('root ::= "{}"')).after is None


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ({"tool_choice": REQUIRED}, "there are no tools"),
        ({"tools": TOOLS, "tool_choice": ToolChoice("required", "other")}, "there is no tool other"),
        (
            {"tools": (Tool("f", parameters={"properties": {"a": {"not": {}}}}),), "tool_choice": REQUIRED},
            "the parameters of the tool f: .* at #/properties/a/not",
        ),
    ],
)
def test_impossible_tool_choices_are_refused(prompt: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        prepare(ControlRunner(), HERMES, **prompt)
