"""What an answer must match, calls and reasoning included. Pure: the request's own constraint in, the effective one out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.protocol.prompts import Tool, ToolChoice
from services.protocol.sampling import Constraint, Gbnf, JsonObject, JsonSchema, Lark, Regex
from services.worker.chat.answer_format import AnswerFormat
from services.worker.chat.family import Family
from services.worker.chat.lark import Rules
from services.worker.chat.reasoning import Phase, Reasoning
from services.worker.engine.grammar.json_schema import normalized


@dataclass(frozen=True)
class Effective:
    """`after`: nothing is constrained until the answer, control tokens as they are written, has held these bytes."""

    constraint: Constraint | None = None
    after: bytes | None = None


@dataclass(frozen=True)
class Wanted:
    """What a chat asks of its answer. `control` as in Rules; `may_reason` False: the caller wants no reasoning."""

    constraint: Constraint | None
    tools: Sequence[Tool]
    choice: ToolChoice
    parallel: bool
    may_reason: bool
    control: Mapping[str, int]


def effective(format: AnswerFormat, phase: Phase, wanted: Wanted) -> Effective:
    """Raises BadRequest for a schema that cannot be compiled.

    Where the prompt has opened the reasoning, the constraint waits for its end. Where the model may begin with it, the grammar
    lets it: a grammar in a notation of its own cannot be made to, so it waits for harmony's final message, or else holds for
    the whole answer.
    """
    reasoning, calls = format.reasoning, _says_calls(format, wanted)
    if wanted.constraint is None and not calls:
        return Effective()
    opens = phase is Phase.FRESH and (wanted.may_reason or not _by_tags(reasoning))
    waits = phase is Phase.REASONING or (opens and not calls and _is_opaque(wanted.constraint) and not _by_tags(reasoning))
    after = reasoning.end.encode() if reasoning and waits else None
    if not calls and (not opens or _is_opaque(wanted.constraint)):
        return Effective(wanted.constraint, after)
    rules = Rules(wanted.control)
    answer = _answer(rules, format, wanted)
    if reasoning and opens:
        answer = rules.sequence(f"{_thoughts(rules, reasoning)}?", answer)
    return Effective(Lark(rules.grammar(answer)), after)


def _by_tags(reasoning: Reasoning | None) -> bool:
    return reasoning is None or reasoning.is_parsed_here


def _is_opaque(constraint: Constraint | None) -> bool:
    return isinstance(constraint, Gbnf | Lark)


def _says_calls(format: AnswerFormat, wanted: Wanted) -> bool:
    """Whether the grammar has to speak of calls: where one is forced, where the answer is either a call or as constrained, and
    where arguments are to be strict."""
    if wanted.choice.mode == "required":
        return True
    if wanted.constraint is not None:
        return bool(wanted.tools) and not _is_opaque(wanted.constraint)
    return format.family.waits and any(tool.strict for tool in wanted.tools)


def _answer(rules: Rules, format: AnswerFormat, wanted: Wanted) -> str:
    family = format.family
    if not wanted.tools:
        return _content(rules, family, wanted.constraint)
    tools = [tool for tool in wanted.tools if wanted.choice.name in {"", tool.name}]
    calls = family.calls(rules, tools, wanted.parallel and not wanted.choice.name)
    called = rules.sequence(rules.literal(family.trigger), calls)
    if wanted.choice.mode == "required":
        return called
    if wanted.constraint is not None:
        return rules.one_of([called, _content(rules, family, wanted.constraint)])
    return rules.one_of([rules.any_text(), rules.sequence(rules.until(family.trigger), calls)])


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
