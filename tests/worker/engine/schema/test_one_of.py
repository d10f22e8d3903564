from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.engine.schema.one_of import OneOf

Schema = dict[str, Any]

values = st.sampled_from([None, True, 1, 2, "a", "b"])
listed = st.builds(lambda value: {"const": value}, values) | st.builds(
    lambda some: {"enum": some}, st.lists(values, max_size=3)
)
typed = st.builds(
    lambda names: {"type": names},
    st.lists(st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"]), min_size=1, max_size=2),
)
objects = st.builds(
    lambda properties, required: {"type": "object", "properties": properties, "required": required},
    st.dictionaries(st.sampled_from(["a", "b"]), listed | typed, max_size=2),
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=2),
)
choices = st.lists(listed | typed | objects | st.just({}), min_size=2, max_size=5)


def allows(schema: Schema, value: Any) -> bool:
    """True if the value matches the schema, which uses only the keywords above."""
    kinds = schema.get("type", [])
    named = {type(None): "null", bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}[type(value)]
    if kinds and named not in kinds and not (named == "integer" and "number" in kinds):
        return False
    known = [schema["const"]] if "const" in schema else schema.get("enum")
    if known is not None and json.dumps(value) not in map(json.dumps, known):
        return False
    if not isinstance(value, dict):
        return True
    properties = schema.get("properties", {})
    return {*schema.get("required", [])} <= value.keys() and all(
        allows(properties.get(name, {}), each) for name, each in value.items()
    )


SCALARS: list[Any] = [None, True, 1, 2, "a", "b", "other", [], {}]
OBJECTS = (
    [{"a": a, "b": b, "c": 1} for a in SCALARS for b in SCALARS] + [{"a": a} for a in SCALARS] + [{"b": b} for b in SCALARS]
)


@given(choices)
def test_no_value_matches_two_disjoint_schemas(schemas: list[Schema]) -> None:
    if OneOf({}).are_disjoint(schemas):
        for one, other in combinations(schemas, 2):
            assert not [value for value in [*SCALARS, *OBJECTS] if allows(one, value) and allows(other, value)]


def tagged(number: int, *, tag: str = "kind") -> Schema:
    return {"type": "object", "properties": {tag: {"const": number}}, "required": [tag]}


@pytest.mark.parametrize(
    ("schemas", "disjoint"),
    [
        ([tagged(1), tagged(2), tagged(3)], True),
        ([tagged(1), tagged(2), tagged(1)], False),
        ([tagged(1), {**tagged(2), "required": []}], True),
        ([tagged(1), {**tagged(2), "required": []}, {**tagged(3), "required": []}], False),
        # Each pair is disjoint by a different property.
        ([{**tagged(n), "properties": {"kind": {"const": n // 2}, "sub": {"const": n % 2}}, "required": ["kind", "sub"]} for n in range(4)], True),
        ([tagged(1), {"const": 1}, {"enum": ["a", None]}, {"type": "array"}], True),
        ([tagged(1), {"type": ["object", "null"]}], False),
        ([{"type": "integer"}, {"type": "number"}], False),
        ([{"type": "string"}, {"const": "a"}], False),
        ([{"enum": [1, 2]}, {"enum": [2, 3]}], False),
        ([{}, {"type": "null"}], False),
        ([True, {"type": "null"}], False),
        ([], False),
    ],
)  # fmt: skip
def test_when_schemas_are_disjoint(schemas: list[Any], disjoint: bool) -> None:
    assert OneOf({}).are_disjoint(schemas) is disjoint


def test_references_are_followed() -> None:
    root = {"$defs": {"a": tagged(1), "b": {"$ref": "#/$defs/c"}, "c": tagged(2)}}
    assert OneOf(root).are_disjoint([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}])
    assert not OneOf(root).are_disjoint([{"$ref": "#/$defs/c"}, {"$ref": "#/$defs/b"}])
