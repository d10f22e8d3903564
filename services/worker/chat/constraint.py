"""The effective constraint of an answer: the caller's own, extended by tool calls and reasoning. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.protocol.errors import BadRequest
from services.protocol.prompts import Tool, ToolChoice
from services.protocol.sampling import Constraint, Gbnf, JsonObject, JsonSchema, Lark, Regex
from services.worker.chat.answer_format import AnswerFormat
from services.worker.chat.family import Family
from services.worker.chat.lark import Rules
from services.worker.chat.reasoning import Phase, Reasoning
from services.worker.engine.grammar.compiler import MAX_SCHEMA_BYTES
from services.worker.engine.schema.json_schema import normalized


@dataclass(frozen=True)
class Effective:
    """`after`: the answer is unconstrained until it has contained these bytes. A control token counts as its text."""

    constraint: Constraint | None = None
    after: bytes | None = None


@dataclass(frozen=True)
class AnswerRequirements:
    """What a chat asks of its answer. `control`: see Rules. `may_reason` is False if the caller wants no reasoning."""

    constraint: Constraint | None
    tools: Sequence[Tool]
    choice: ToolChoice
    parallel: bool
    may_reason: bool
    control: Mapping[str, int]


def effective(format: AnswerFormat, phase: Phase, requirements: AnswerRequirements) -> Effective:
    """Raises BadRequest for a schema that cannot be compiled.

    If the prompt opened the reasoning, the constraint starts after the reasoning ends. If the model may start with reasoning,
    the grammar allows it. A caller's GBNF or Lark grammar cannot be extended like that: it starts with harmony's final message
    or, in other families, applies to the whole answer.
    """
    reasoning, calls = format.reasoning, _describes_calls(format, requirements)
    if requirements.constraint is None and not calls:
        return Effective()
    opens = phase is Phase.FRESH and (requirements.may_reason or not _by_tags(reasoning))
    waits = phase is Phase.REASONING or (
        opens and not calls and _is_opaque(requirements.constraint) and not _by_tags(reasoning)
    )
    after = reasoning.end.encode() if reasoning and waits else None
    if not calls and (not opens or _is_opaque(requirements.constraint)):
        return Effective(requirements.constraint, after)
    rules = Rules(requirements.control)
    answer = _answer(rules, format, requirements)
    if reasoning and opens:
        answer = rules.sequence(f"{_thoughts(rules, reasoning)}?", answer)
    return Effective(Lark(rules.grammar(answer)), after)


def _by_tags(reasoning: Reasoning | None) -> bool:
    return reasoning is None or reasoning.is_parsed_here


def _is_opaque(constraint: Constraint | None) -> bool:
    return isinstance(constraint, Gbnf | Lark)


def _describes_calls(format: AnswerFormat, requirements: AnswerRequirements) -> bool:
    """Whether the grammar must describe calls: a call is required, the answer is either a call or matches the caller's
    constraint, or a tool is strict."""
    if requirements.choice.mode == "required":
        return True
    if requirements.constraint is not None:
        return bool(requirements.tools) and not _is_opaque(requirements.constraint)
    return format.family.waits and any(tool.strict for tool in requirements.tools)


def _answer(rules: Rules, format: AnswerFormat, requirements: AnswerRequirements) -> str:
    family = format.family
    if not requirements.tools:
        return _content(rules, family, requirements.constraint)
    tools = [tool for tool in requirements.tools if requirements.choice.name in {"", tool.name}]
    _check_size(tools)
    calls = family.calls(rules, tools, requirements.parallel and not requirements.choice.name)
    called = rules.sequence(rules.literal(family.trigger), calls)
    if requirements.choice.mode == "required":
        return called
    if requirements.constraint is not None:
        return rules.one_of([called, _content(rules, family, requirements.constraint)])
    return rules.one_of([rules.any_text(), rules.sequence(rules.until(family.trigger), calls)])


def _check_size(tools: Sequence[Tool]) -> None:
    """Called before any schema is normalized."""
    if sum(len(json.dumps(tool.parameters)) for tool in tools) > MAX_SCHEMA_BYTES:
        raise BadRequest(f"tools: their schemas are larger than {MAX_SCHEMA_BYTES // 1024} KiB together", field="tools")


def _content(rules: Rules, family: Family, constraint: Constraint | None) -> str:
    return rules.sequence(rules.literal(family.content_begin), _term(rules, constraint))


def _term(rules: Rules, constraint: Constraint | None) -> str:
    match constraint:
        case JsonObject():
            return rules.json({"type": "object"})
        case JsonSchema(schema):
            return rules.json(normalized(schema))
        case Regex(pattern):
            return rules.regex(pattern)
    return rules.any_text()


def _thoughts(rules: Rules, reasoning: Reasoning) -> str:
    gap = rules.regex(r"[ \n]{0,4}") if reasoning.is_parsed_here else ""
    return rules.sequence(rules.literal(reasoning.open), rules.until(reasoning.close), gap)
