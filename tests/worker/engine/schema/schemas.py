"""Random JSON schemas whose values are short: everything has an upper bound."""

from __future__ import annotations

from random import Random
from typing import Any

Schema = dict[str, Any]

_NAMES = ["a", "b", "name", "the age", "x/y", "é", 'q"t']
_PATTERNS = ["^[a-z]{2,4}$", "^[0-9]{1,5}$", r"^\d\d$", "^(foo|bar)$", "^a.c$", r"^\w{1,3}@\w{1,3}$", '^[^"]{0,4}$']
_FORMATS = ["date", "time", "uuid", "ipv4"]


def schema(rng: Random, *, depth: int = 3) -> Schema:
    """A schema with two definitions that may be used, also by each other if that ends."""
    definitions = {name: _schema(rng, depth - 1, names=()) for name in ("leaf", "other")}
    node = {
        "type": "object",
        "properties": {"value": {"$ref": "#/$defs/leaf"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {**_schema(rng, depth, names=("leaf", "other", "node")), "$defs": {**definitions, "node": node}}


def _schema(rng: Random, depth: int, names: tuple[str, ...]) -> Schema:
    leaves = [_string, _number, _listed, _plain]
    if depth == 0:
        return rng.choice(leaves)(rng)
    if names and rng.random() < 0.2:
        return {"$ref": f"#/$defs/{rng.choice(names)}"}
    if rng.random() < 0.25:
        return rng.choice(leaves)(rng)
    return rng.choice([_object, _object, _map, _array, _tuple, _any_of, _one_of, _all_of])(rng, depth - 1, names)


def _string(rng: Random) -> Schema:
    shortest = rng.randrange(4)
    bounds = {"minLength": shortest, "maxLength": shortest + rng.randrange(5)}
    kinds: list[Schema] = [bounds, {"pattern": rng.choice(_PATTERNS)}, {"format": rng.choice(_FORMATS)}]
    return {"type": "string", **rng.choice(kinds)}


def _number(rng: Random) -> Schema:
    low = rng.randrange(-1000, 1000)
    bounds: list[Schema] = [
        {"type": "integer", "minimum": low, "maximum": low + rng.randrange(50)},
        {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 2 + rng.randrange(50)},
        {"type": "integer", "multipleOf": rng.choice([2, 3, 7]), "minimum": 0, "maximum": 1000},
        # For 0.25, llguidance accepts 1.50 but not 1.5.
        {"type": "number", "multipleOf": 0.5, "minimum": low, "maximum": low + 9},
    ]
    return rng.choice(bounds)


def _listed(rng: Random) -> Schema:
    values: list[Any] = [None, True, 0, -3, 2.5, "", "yes", 'with "quotes"', "ü\n", [1, "a"], {"k": {"l": []}}]
    return {"const": rng.choice(values)} if rng.random() < 0.3 else {"enum": rng.sample(values, rng.randint(1, 4))}


def _plain(rng: Random) -> Schema:
    return {"type": rng.choice(["null", "boolean", ["boolean", "null"]])}


def _object(rng: Random, depth: int, names: tuple[str, ...]) -> Schema:
    listed = rng.sample(_NAMES, rng.randint(1, 4))
    found: Schema = {
        "type": "object",
        "properties": {name: _schema(rng, depth, names) for name in listed},
        "required": [name for name in listed if rng.random() < 0.5],
    }
    if rng.random() < 0.5:
        found["additionalProperties"] = False
    return found


def _map(rng: Random, depth: int, names: tuple[str, ...]) -> Schema:
    most = rng.randint(1, 2)
    return {
        "type": "object",
        "patternProperties": {"^p[0-9]{1,3}$": _schema(rng, depth, names)},
        "additionalProperties": False,
        "minProperties": rng.randint(0, 1),
        "maxProperties": most,
    }


def _array(rng: Random, depth: int, names: tuple[str, ...]) -> Schema:
    least = rng.randrange(3)
    return {"type": "array", "items": _schema(rng, depth, names), "minItems": least, "maxItems": least + rng.randrange(3)}


def _tuple(rng: Random, depth: int, names: tuple[str, ...]) -> Schema:
    first = [_schema(rng, depth, names) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": rng.randrange(len(first) + 1)}


def _any_of(rng: Random, depth: int, names: tuple[str, ...]) -> Schema:
    return {"anyOf": [_schema(rng, depth, names) for _ in range(rng.randint(1, 3))]}


def _one_of(rng: Random, depth: int, names: tuple[str, ...]) -> Schema:
    """A tagged union."""
    tagged = [
        {
            "type": "object",
            "properties": {"kind": {"const": tag}, "value": _schema(rng, depth, names)},
            "required": ["kind"],
            "additionalProperties": False,
        }
        for tag in ("x", "y")
    ]
    return {"oneOf": tagged}


def _all_of(rng: Random, depth: int, names: tuple[str, ...]) -> Schema:
    """Two objects merged by `allOf`."""
    parts = [{"properties": {name: _schema(rng, depth, names)}, "required": [name]} for name in ("left", "right")]
    return {"type": "object", "allOf": parts, "maxProperties": 2}
