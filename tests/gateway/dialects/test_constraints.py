"""Constraints on an answer (JSON, schema, regex, grammar, choices) in the fields of both dialects."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.dialects import ollama, openai
from services.gateway.dialects.bodies import InvalidField
from services.protocol.errors import BadRequest
from services.protocol.sampling import Constraint, Gbnf, JsonObject, JsonSchema, Lark, Regex
from tests.gateway.dialects.transcripts import ticket

SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {}}}


def ask_openai(changes: dict[str, Any]) -> Constraint | None:
    raw = json.dumps({"model": "smollm2:135m", "messages": [{"role": "user", "content": "Hi"}], **changes}).encode()
    return openai.chat_request(openai.decode_chat(raw), ticket()).constraint


def ask_ollama(asked: Any) -> Constraint | None:
    raw = json.dumps({"model": "smollm2:135m", "prompt": "Hi", "format": asked}).encode()
    return ollama.generate_request(ollama.decode_generate(raw), ticket()).constraint


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({}, None),
        ({"response_format": {}}, None),
        ({"response_format": {"type": "text"}, "grammar": "", "guided_choice": [], "structured_outputs": {}}, None),
        ({"response_format": {"type": "json_object"}}, JsonObject()),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JsonSchema(SCHEMA)),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, JsonSchema(SCHEMA)),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": False}}}, JsonSchema(False)),
        ({"json_schema": SCHEMA}, JsonSchema(SCHEMA)),
        ({"grammar": 'root ::= "a"'}, Gbnf('root ::= "a"')),
        ({"guided_json": SCHEMA}, JsonSchema(SCHEMA)),
        ({"guided_json": json.dumps(SCHEMA)}, JsonSchema(SCHEMA)),
        ({"guided_regex": "a+"}, Regex("a+")),
        ({"guided_choice": ["yes", "no (never)"]}, Regex(r"yes|no \(never\)")),
        ({"guided_grammar": 'root ::= "a"'}, Gbnf('root ::= "a"')),
        ({"guided_grammar": 'start: "a"'}, Lark('start: "a"')),
        ({"structured_outputs": {"json": SCHEMA}}, JsonSchema(SCHEMA)),
        ({"structured_outputs": {"json_object": True}}, JsonObject()),
        ({"structured_outputs": {"regex": "a+"}}, Regex("a+")),
        ({"structured_outputs": {"choice": ["a"]}}, Regex("a")),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Lark('start: "a"')),
    ],
)
def test_openai_fields_become_a_constraint(changes: dict[str, Any], constraint: Constraint | None) -> None:
    assert ask_openai(changes) == constraint


def test_properties_keep_their_order() -> None:
    constraint = ask_openai({"json_schema": SCHEMA})
    assert isinstance(constraint, JsonSchema)
    assert isinstance(constraint.schema, dict)
    assert list(constraint.schema["properties"]) == ["z", "a"]


@pytest.mark.parametrize(
    ("changes", "message", "field"),
    [
        ({"response_format": {"type": "xml"}}, "must be 'text', 'json_object' or 'json_schema'", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "expected a JSON Schema", "response_format.json_schema.schema"),
        ({"response_format": "json"}, "expected object, got str", "response_format"),
        ({"guided_json": "{"}, "invalid JSON", "guided_json"),
        ({"guided_json": 5}, "expected a JSON Schema", "guided_json"),
        ({"json_schema": {"maximum": 2**70}}, "contains an integer of more than 64 bits", "json_schema"),
        ({"guided_choice": [5]}, "expected str, got int", "guided_choice[0]"),
    ],
)
def test_invalid_openai_constraints_are_refused(changes: dict[str, Any], message: str, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        ask_openai(changes)
    assert caught.value.field == field
    assert caught.value.message.startswith(f"{field}: {message}")


def test_two_constraints_are_refused() -> None:
    with pytest.raises(InvalidField) as caught:
        ask_openai({"response_format": {"type": "json_object"}, "guided_regex": "a", "grammar": "root ::= x"})
    assert caught.value.message == "response_format and grammar and guided_regex: an answer can match only one of them"
    assert caught.value.field == "response_format"


@given(st.lists(st.text(min_size=1), min_size=1, max_size=3))
def test_a_choice_matches_only_itself(choices: list[str]) -> None:
    """Python's `re` stands in for Rust's: both give the same characters a special meaning."""
    constraint = ask_openai({"guided_choice": choices})
    assert isinstance(constraint, Regex)
    for choice in choices:
        assert re.fullmatch(constraint.pattern, choice)
        assert not re.fullmatch(constraint.pattern, choice + "x") or choice + "x" in choices


@pytest.mark.parametrize(
    ("asked", "constraint"),
    [(None, None), ("", None), ("json", JsonObject()), (SCHEMA, JsonSchema(SCHEMA)), ({}, JsonSchema({}))],
)
def test_ollamas_format_becomes_a_constraint(asked: Any, constraint: Constraint | None) -> None:
    assert ask_ollama(asked) == constraint


@pytest.mark.parametrize("asked", ["xml", 5, [], True])
def test_invalid_ollama_formats_are_refused(asked: Any) -> None:
    with pytest.raises(BadRequest, match="^invalid format: .*; expected "):
        ask_ollama(asked)
