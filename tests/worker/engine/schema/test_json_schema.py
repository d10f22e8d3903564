from __future__ import annotations

import json
from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.protocol.errors import BadRequest
from services.protocol.sampling import JsonObject, JsonSchema
from services.worker.engine.grammar import GrammarCompiler
from services.worker.engine.schema.json_schema import normalized
from tests.worker.engine.grammar.answers import accepts, draw, follow
from tests.worker.engine.schema.schemas import schema

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}, "tags": {"items": {"type": "string"}}},
    "required": ["name", "age"],
}


def takes(grammars: GrammarCompiler, asked: dict[str, Any] | bool, answer: str) -> bool:
    return accepts(grammars.compile(JsonSchema(asked)), answer)


def test_properties_are_in_the_schemas_order(byte_grammars: GrammarCompiler) -> None:
    assert takes(byte_grammars, PERSON, '{"name": "Ada", "age": 36}')
    assert takes(byte_grammars, PERSON, '{"name":"Ada","age":36,"tags":["x"]}')
    assert not takes(byte_grammars, PERSON, '{"age": 36, "name": "Ada"}')
    assert not takes(byte_grammars, PERSON, '{"name": "Ada"}')


def test_ordinary_whitespace_is_allowed_and_limited(byte_grammars: GrammarCompiler) -> None:
    assert takes(byte_grammars, PERSON, json.dumps({"name": "Ada", "age": 36, "tags": ["a", "b"]}, indent=4))
    assert takes(byte_grammars, PERSON, json.dumps({"name": "Ada", "age": 36}, indent="\t"))
    for blank in (" ", "\n", "\t", "\n "):
        matcher = byte_grammars.compile(JsonSchema(PERSON)).matcher()
        assert follow(matcher, b"{" + blank.encode() * 1000) < 50


def test_an_object_with_properties_allows_others_only_if_the_schema_does(byte_grammars: GrammarCompiler) -> None:
    other = '{"name": "Ada", "age": 36, "x": 1}'
    assert not takes(byte_grammars, PERSON, other)
    assert takes(byte_grammars, {**PERSON, "additionalProperties": True}, other)
    assert takes(byte_grammars, {**PERSON, "additionalProperties": {"type": "integer"}}, other)
    assert not takes(byte_grammars, {**PERSON, "additionalProperties": {"type": "string"}}, other)
    assert takes(byte_grammars, {"type": "object"}, other)


def test_properties_imply_an_object_and_items_an_array(byte_grammars: GrammarCompiler) -> None:
    assert not takes(byte_grammars, {"properties": {"a": {}}}, "1")
    assert not takes(byte_grammars, {"items": {"type": "integer"}}, "{}")
    assert takes(byte_grammars, {"properties": {"a": {}}, "enum": [1]}, "1")


def test_parts_of_an_intersection_allow_each_others_properties(byte_grammars: GrammarCompiler) -> None:
    parts = [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"properties": {"b": {"const": 2}}, "required": ["b"]}]
    assert takes(byte_grammars, {"allOf": parts, "type": "object"}, '{"a": 1, "b": 2}')
    assert takes(byte_grammars, {**parts[0], "anyOf": [parts[1]], "type": "object"}, '{"a": 1, "b": 2}')


@pytest.mark.parametrize(
    ("asked", "good", "bad"),
    [
        (True, ["1", '"x"', "null", "[{}]"], ["", "{", "nul"]),
        ({}, ["1", '{"a": [true]}'], ["a"]),
        ({"type": ["integer", "null"]}, ["12", "null"], ['"12"', "1.5"]),
        ({"type": "integer", "minimum": -5, "exclusiveMaximum": 3}, ["-5", "0", "2"], ["-6", "3"]),
        ({"type": "number", "minimum": 0.5}, ["0.5", "7", "1.25"], ["0.4", "-1"]),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, ["4"], ["3"]),
        ({"type": "integer", "multipleOf": 7}, ["0", "21", "-7"], ["8"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"äöü"', r'"\n\n"'], ['"a"', '"abcd"']),
        ({"type": "string", "pattern": "b"}, ['"abc"', '"b"'], ['"ac"']),
        ({"type": "string", "pattern": "^a+$", "maxLength": 2}, ['"a"', '"aa"'], ['"aaa"', '""', '"b"']),
        ({"type": "string", "pattern": '^[^"]+$'}, ['"ab"', r'"a\\b"', '"é"'], [r'"a\"b"', '""']),
        ({"type": "string", "pattern": r'^[^"\\]+$'}, ['"ab"'], [r'"a\"b"', r'"a\\b"']),
        ({"type": "string", "pattern": r"^\[\^[^a]$"}, ['"[^b"'], ['"[^a"', '"x"']),
        ({"type": "string", "format": "uuid"}, ['"01234567-89ab-cdef-0123-456789abcdef"'], ['"01234567"']),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-13-01"', '"today"']),
        ({"type": "integer", "format": "int32"}, ["5"], ["x"]),
        ({"enum": ["a", 1, None, [2]]}, ['"a"', "1", "null", "[2]"], ['"b"', "2"]),
        ({"const": {"a": [1, {}]}}, ['{"a": [1, {}]}'], ['{"a": [1]}']),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, ["[1]", "[1, 2]"], ["[]", "[1, 2, 3]"]),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, ["[1]", "[]"], ["[1, 2]", "[2]"]),
        ({"type": "array", "items": [{"const": 1}], "additionalItems": {"const": 2}}, ["[1]", "[1, 2, 2]"], ["[1, 1]"]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["1", "null"], ["true"]),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["null"]),
        ({"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}]}, ["2", "4"], ["1", "5"]),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"const": 1}}}, ["1"], ["2"]),
        ({"$ref": "#/definitions/x", "definitions": {"x": {"type": "null"}}}, ["null"], ["1"]),
        (
            {"type": "object", "patternProperties": {"^p": {"const": 1}}, "additionalProperties": False},
            ['{"p1": 1}'],
            ['{"q": 1}'],
        ),
        ({"type": "array", "uniqueItems": False, "items": {"const": 1}}, ["[1, 1]"], ["[2]"]),
        (
            {"type": "null", "title": "t", "x-mine": 1, "deprecated": True, "examples": [1], "x-guidance": {"lenient": True}},
            ["null"],
            ["1"],
        ),
    ],
)
def test_keywords_are_enforced(
    byte_grammars: GrammarCompiler, asked: dict[str, Any] | bool, good: list[str], bad: list[str]
) -> None:
    for answer in good:
        assert takes(byte_grammars, asked, answer), answer
    for answer in bad:
        assert not takes(byte_grammars, asked, answer), answer


def test_a_tagged_union_may_consist_of_references(byte_grammars: GrammarCompiler) -> None:
    def shape(kind: str, size: str) -> dict[str, Any]:
        properties = {"kind": {"const": kind}, size: {"type": "integer"}}
        return {"type": "object", "properties": properties, "required": ["kind", size]}

    union = {
        "oneOf": [{"$ref": "#/$defs/Circle"}, {"$ref": "#/$defs/Square"}],
        "discriminator": {"propertyName": "kind"},
        "$defs": {"Circle": shape("circle", "radius"), "Square": shape("square", "side")},
    }
    assert takes(byte_grammars, union, '{"kind": "square", "side": 2}')
    assert not takes(byte_grammars, union, '{"kind": "square", "radius": 2}')


def test_a_schema_may_refer_to_itself(byte_grammars: GrammarCompiler) -> None:
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}, "required": ["children"]}
    assert takes(byte_grammars, tree, '{"children": [{"children": []}, {"children": [{"children": []}]}]}')
    assert not takes(byte_grammars, tree, '{"children": [{}]}')


def test_any_object_means_exactly_one_object(byte_grammars: GrammarCompiler) -> None:
    grammar = byte_grammars.compile(JsonObject())
    assert accepts(grammar, '{"a": [1, {"b": null}], "c": "d"}')
    assert not accepts(grammar, "[]")
    assert not accepts(grammar, "{} {}")


@pytest.mark.parametrize(
    ("asked", "place", "reason"),
    [
        ({"properties": {"age": {"type": "string", "pattern": "a("}}}, "#/properties/age/pattern", "unclosed group"),
        ({"properties": {"a/b c": {"pattern": "(?=x)"}}}, "#/properties/a~1b%20c/pattern", "look-around"),
        ({"items": {"anyOf": [{}, {"not": {"type": "null"}}]}}, "#/items/anyOf/1/not", "'not' is not supported"),
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems", "not supported"),
        ({"if": {}, "then": {}}, "#/if", "not supported"),
        ({"properties": {"x": {"format": "regex"}}}, "#/properties/x/format", "'regex' is not supported"),
        ({"properties": {"x": {"type": "strin"}}}, "#/properties/x/type", "Invalid type: strin"),
        ({"items": 3}, "#/items", "an object or a boolean"),
        ({"anyOf": {}}, "#/anyOf", "array of schemas"),
        ({"properties": []}, "#/properties", "object of schemas"),
        ({"properties": {"n": {"type": "integer", "minimum": 5, "maximum": 3}}, "required": ["n"]}, "#/properties/n", "is greater"),
        ({"properties": {"n": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"pattern": "["}}}, "#/$defs/x/pattern", "unclosed"),
        ({"properties": {"n": {"$ref": "#/$defs/y"}}, "$defs": {"x": {}}}, "#/properties/n/$ref", "nothing at #/$defs/y"),
        ({"items": {"$ref": "https://example.com/s.json"}}, "#/items/$ref", "into the same schema"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "#/oneOf", "no value matches two"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "#/oneOf", "no value matches two"),
        ({"type": "object", "minProperties": 2}, "#/minProperties", "more than one property"),
        ({"$ref": "#"}, "#", "an infinite value"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"$ref": "#/$defs/b"}}}, "#/properties/a", "an infinite value"),
        ({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}, "#", "an infinite value"),
        (False, "#", "no value validates"),
        ({"enum": []}, "#/enum", "empty"),
        ({"minLength": "x"}, "#/minLength", "positive integer"),
    ],
)  # fmt: skip
def test_a_refusal_gives_the_place_and_the_reason(
    byte_grammars: GrammarCompiler, asked: dict[str, Any], place: str, reason: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        byte_grammars.compile(JsonSchema(asked))
    assert refused.value.message.startswith(f"the JSON schema cannot be compiled at {place}: ")
    assert reason in refused.value.message
    assert "\n" not in refused.value.message


@settings(max_examples=250)
@given(st.randoms(use_true_random=False))
def test_drawn_answers_validate(byte_grammars: GrammarCompiler, rng: Random) -> None:
    asked = schema(rng)
    grammar = byte_grammars.compile(JsonSchema(asked))
    answer = draw(grammar, Random(rng.random()))
    if answer is not None:  # a list may take too long to end
        jsonschema.Draft202012Validator(asked).validate(json.loads(answer))


@settings(max_examples=100)
@given(st.randoms(use_true_random=False))
def test_json_written_by_python_is_accepted(byte_grammars: GrammarCompiler, rng: Random) -> None:
    """The same value in the usual formatting."""
    grammar = byte_grammars.compile(JsonSchema(schema(rng)))
    answer = draw(grammar, Random(rng.random()))
    if answer is not None:
        for indent in (None, 2):
            text = json.dumps(json.loads(answer), ensure_ascii=False, indent=indent)
            assert accepts(grammar, text.replace("\x7f", "\\u007F"))  # Python does not escape this character


KEYWORDS = st.sampled_from(
    [
        "required",
        "properties",
        "items",
        "enum",
        "type",
        "format",
        "pattern",
        "minLength",
        "maxItems",
        "minimum",
        "oneOf",
        "anyOf",
    ]
    + [
        "allOf",
        "$ref",
        "$defs",
        "definitions",
        "additionalProperties",
        "patternProperties",
        "prefixItems",
        "not",
        "if",
        "contains",
    ]
    + [
        "uniqueItems",
        "default",
        "title",
        "description",
        "exclusiveMinimum",
        "dependencies",
        "additionalItems",
        "$schema",
        "x-mine",
    ]
)


@given(st.randoms(use_true_random=False), st.sets(KEYWORDS, min_size=1, max_size=6))
def test_a_keyword_that_is_null_is_absent(rng: Random, keywords: set[str]) -> None:
    asked = schema(rng)
    assert normalized(with_nulls(asked, keywords)) == normalized(asked)


def with_nulls(value: Any, keywords: set[str]) -> Any:
    """The schema with these keywords set to null, in it and in every schema below it, in `properties` or in lists."""
    if not isinstance(value, dict):
        return value
    below = {
        name: {key: with_nulls(part, keywords) for key, part in child.items()}
        if name in {"properties", "$defs"}
        else [with_nulls(part, keywords) for part in child]
        if name in {"anyOf", "oneOf", "allOf", "prefixItems"}
        else child
        for name, child in value.items()
    }
    return {**dict.fromkeys(keywords - value.keys()), **below}


def test_null_as_a_value_keeps_its_meaning(byte_grammars: GrammarCompiler) -> None:
    for asked in ({"const": None}, {"enum": [None]}, {"enum": [None, 1], "default": None, "required": None}):
        assert takes(byte_grammars, asked, "null")
        assert not takes(byte_grammars, asked, "2")
