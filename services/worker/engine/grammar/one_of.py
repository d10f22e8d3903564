"""`oneOf` is `anyOf` where no value can validate against two of its schemas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from services.worker.engine.grammar.pointer import Pointer

_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})


def are_disjoint(schemas: Sequence[Any], root: dict[str, Any]) -> bool:
    """True only where it is certain; False also for an empty list. References within `root` are followed, which llguidance's
    own test does not do."""
    targets = [_target(schema, root) for schema in schemas]
    return bool(targets) and all(_excludes(a, b, root) for a, b in combinations(targets, 2))


def _target(schema: Any, root: dict[str, Any]) -> Any:
    for _ in range(16):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            return schema
        place = Pointer.parse(schema["$ref"])
        schema = None if place is None else place.target(root)
    return None


def _excludes(a: Any, b: Any, root: dict[str, Any]) -> bool:
    if not isinstance(a, dict) or not isinstance(b, dict):
        return False
    if not _types(a) & _types(b):
        return True
    values_a, values_b = _values(a), _values(b)
    if values_a is not None and values_b is not None:
        return not values_a & values_b
    return _types(a) == _types(b) == {"object"} and _tagged_apart(a, b, root)


def _tagged_apart(a: dict[str, Any], b: dict[str, Any], root: dict[str, Any]) -> bool:
    """A property that one of them requires has no value that both allow: a tagged union."""
    both = [properties for schema in (a, b) if isinstance(properties := schema.get("properties"), dict)]
    required = [name for schema in (a, b) for name in _list(schema.get("required"))]
    if len(both) < 2:
        return False
    tags = ([_values(_target(properties.get(name), root)) for properties in both] for name in required)
    return any(x is not None and y is not None and not x & y for x, y in tags)


def _types(schema: dict[str, Any]) -> frozenset[str]:
    """Those that a value of it can have."""
    values = _values(schema)
    if values is not None:
        return frozenset(_type(json.loads(value)) for value in values)
    names = [schema["type"]] if isinstance(schema.get("type"), str) else _list(schema.get("type"))
    return frozenset("number" if name == "integer" else str(name) for name in names) or _TYPES


def _type(value: Any) -> str:
    return {type(None): "null", bool: "boolean", int: "number", str: "string"}[type(value)]


def _values(schema: Any) -> frozenset[str] | None:
    """The only values that it allows, as JSON; None where they are not listed, or hold some that are equal in several ways."""
    if not isinstance(schema, dict):
        return None
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(listed, list) or not all(value is None or isinstance(value, bool | int | str) for value in listed):
        return None
    return frozenset(map(json.dumps, listed))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
