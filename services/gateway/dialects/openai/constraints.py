"""Output constraints: OpenAI's `response_format`, llama-server's `grammar` and `json_schema`, vLLM's `structured_outputs` and
the older `guided_*` fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec

from services.gateway.dialects.bodies import InvalidField, check_limit, check_portable, decode_leniently
from services.gateway.dialects.limits import CHOICES, JSON_VALUES, Grammar
from services.protocol.sampling import Constraint, Gbnf, JsonObject, JsonSchema, Lark, Regex

Choices = Annotated[list[Grammar], CHOICES.length]

_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
#: Characters with a special meaning in Rust's regular expressions.
_META = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~]")


class StructuredOutputs(msgspec.Struct):
    """vLLM's `StructuredOutputsParams`."""

    json: Any = None
    regex: Grammar | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None
    json_object: bool | None = None


class ConstraintFields(msgspec.Struct):
    """The fields of a request body that set a constraint."""

    response_format: dict[str, Any] | None = None
    json_schema: Any = None
    grammar: Grammar | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Any = None
    guided_regex: Grammar | None = None
    guided_choice: Choices | None = None
    guided_grammar: Grammar | None = None


def constraint_of(body: ConstraintFields) -> Constraint | None:
    """The body's constraint. Raises InvalidField if it is malformed or if there is more than one."""
    read = ((field, make(value, field)) for field, value, make in _asked(body) if value is not None)
    found = [(field, constraint) for field, constraint in read if constraint is not None]
    if len(found) > 1:
        fields = " and ".join(field for field, _ in found)
        raise InvalidField(f"{fields}: an answer can match only one of them", field=found[0][0])
    return found[0][1] if found else None


def _asked(body: ConstraintFields) -> Iterator[tuple[str, Any, Callable[[Any, str], Constraint | None]]]:
    yield "response_format", body.response_format, _response_format
    yield "json_schema", body.json_schema, _schema
    yield "grammar", body.grammar, lambda grammar, field: Gbnf(grammar) if grammar else None
    yield "guided_json", body.guided_json, _schema
    yield "guided_regex", body.guided_regex, _regex
    yield "guided_choice", body.guided_choice, _choice
    yield "guided_grammar", body.guided_grammar, _grammar
    if (structured := body.structured_outputs) is not None:
        yield "structured_outputs.json", structured.json, _schema
        yield "structured_outputs.json_object", structured.json_object, lambda enabled, field: JsonObject() if enabled else None
        yield "structured_outputs.regex", structured.regex, _regex
        yield "structured_outputs.choice", structured.choice, _choice
        yield "structured_outputs.grammar", structured.grammar, _grammar


def _response_format(asked: dict[str, Any], field: str) -> Constraint | None:
    """As with llama-server, `json_object` may come with a schema."""
    match asked.get("type") or "text":
        case "text":
            return None
        case "json_object":
            schema = asked.get("schema")
            return JsonObject() if schema is None else _schema(schema, f"{field}.schema")
        case "json_schema":
            described = asked.get("json_schema")
            return _schema(described.get("schema") if isinstance(described, dict) else None, f"{field}.json_schema.schema")
        case _:
            raise _refusal(f"{field}.type", "must be 'text', 'json_object' or 'json_schema'")


def _regex(pattern: str, field: str) -> Constraint | None:
    return Regex(pattern) if pattern else None


def _choice(choices: list[str], field: str) -> Constraint | None:
    return Regex("|".join(_META.sub(r"\\\g<0>", choice) for choice in choices)) if choices else None


def _grammar(grammar: str, field: str) -> Constraint | None:
    """vLLM accepts both GBNF and Lark in this field."""
    if not grammar:
        return None
    return Gbnf(grammar) if _GBNF_RULE.search(grammar) else Lark(grammar)


def _schema(schema: object, field: str) -> Constraint:
    """Accepts a schema as an object or, as vLLM does, as JSON text."""
    if isinstance(schema, str):
        check_limit(JSON_VALUES, len(schema), field=field)
        try:
            schema = decode_leniently(msgspec.json.decode, schema.encode())
        except (msgspec.DecodeError, RecursionError) as error:
            raise _refusal(field, f"invalid JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        raise _refusal(field, "expected a JSON Schema")
    check_portable(schema, field=field)
    return JsonSchema(schema)


def _refusal(field: str, problem: str) -> InvalidField:
    return InvalidField(f"{field}: {problem}", field=field)
