"""OneOf: finds each `oneOf` that is equivalent to `anyOf`, because no value matches two of its schemas."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from services.worker.engine.schema.pointer import Pointer

#: If no single property distinguishes the schemas, they are compared pair by pair, up to this many.
_MAX_COMPARED = 64

_OBJECT = frozenset({"object"})
_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})


class OneOf:
    """Tests the choices within `root`. Unlike llguidance's own test, it follows references. The same list of schemas is tested
    only once, even if many choices refer to it."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._known: dict[tuple[int, ...], bool] = {}

    def are_disjoint(self, schemas: Sequence[Any]) -> bool:
        """True if certainly no value matches two of the schemas. False for an empty list."""
        targets = [_target(schema, self._root) for schema in schemas]
        key = tuple(map(id, targets))
        if key not in self._known:
            self._known[key] = _are_disjoint(targets, self._root)
        return self._known[key]


def _are_disjoint(targets: Sequence[Any], root: dict[str, Any]) -> bool:
    if not targets or not all(isinstance(target, dict) for target in targets):
        return False
    listed = [values for target in targets if (values := _values(target)) is not None]
    others = [target for target in targets if _values(target) is None]
    return _share_nothing(listed) and _differ_in_type(listed, others) and _differ_in_tag(_objects(others), root)


def _share_nothing(sets: Sequence[frozenset[str]]) -> bool:
    return len(frozenset().union(*sets)) == sum(map(len, sets))


def _differ_in_type(listed: Sequence[frozenset[str]], others: Sequence[dict[str, Any]]) -> bool:
    """Whether no two of the schemas share a type. Schemas that only allow objects may share theirs."""
    types = [_types(schema) for schema in others]
    of_listed = frozenset(_type(json.loads(value)) for values in listed for value in values)
    only_objects = [_OBJECT] if _OBJECT in types else []
    return _share_nothing([*(each for each in types if each != _OBJECT), *only_objects, of_listed])


def _differ_in_tag(objects: Sequence[dict[str, Any]], root: dict[str, Any]) -> bool:
    """Whether this is a tagged union: each pair has a property that one of the two requires, with no value that both allow."""
    if len(objects) < 2 or _is_tag_of(objects, root):
        return True
    pairs = combinations(objects, 2)
    return len(objects) <= _MAX_COMPARED and all(_is_tag_of(pair, root) for pair in pairs)


def _is_tag_of(objects: Sequence[dict[str, Any]], root: dict[str, Any]) -> bool:
    """Whether one property distinguishes all of them."""
    required = Counter(name for schema in objects for name in _names(schema.get("required")))
    candidates = [name for name, count in required.items() if count >= len(objects) - 1]
    return any(_distinguishes(name, objects, root) for name in candidates)


def _distinguishes(name: str, objects: Sequence[dict[str, Any]], root: dict[str, Any]) -> bool:
    seen: set[str] = set()
    for schema in objects:
        properties = schema.get("properties")
        values = _values(_target(properties.get(name), root)) if isinstance(properties, dict) else None
        if values is None or not seen.isdisjoint(values):
            return False
        seen |= values
    return True


def _objects(schemas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [schema for schema in schemas if _types(schema) == _OBJECT]


def _names(required: Any) -> frozenset[str]:
    return frozenset(name for name in _list(required) if isinstance(name, str))


def _target(schema: Any, root: dict[str, Any]) -> Any:
    for _ in range(16):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            return schema
        place = Pointer.parse(schema["$ref"])
        schema = None if place is None else place.target(root)
    return None


def _types(schema: dict[str, Any]) -> frozenset[str]:
    """The types that a value of the schema can have."""
    values = _values(schema)
    if values is not None:
        return frozenset(_type(json.loads(value)) for value in values)
    names = [schema["type"]] if isinstance(schema.get("type"), str) else _list(schema.get("type"))
    return frozenset("number" if name == "integer" else str(name) for name in names) or _TYPES


def _type(value: Any) -> str:
    return {type(None): "null", bool: "boolean", int: "number", str: "string"}[type(value)]


def _values(schema: Any) -> frozenset[str] | None:
    """The values that the schema lists, as JSON. None if it lists none, or one that has several spellings, such as a float."""
    if not isinstance(schema, dict):
        return None
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(listed, list) or not all(value is None or isinstance(value, bool | int | str) for value in listed):
        return None
    return frozenset(map(json.dumps, listed))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
