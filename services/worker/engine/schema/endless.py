"""Finds schemas that no finite value matches, because they require themselves: `{"$ref": "#"}`, or a list node that requires a
next one. An answer constrained by such a schema could never end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from typing import Any

from services.worker.engine.schema.pointer import Pointer


def endless(schemas: list[dict[str, Any]], root: dict[str, Any]) -> set[int]:
    """The `id` of each endless schema in `schemas`, which are all schemas within `root`. A schema `false` is not endless."""
    needs = {id(schema): [set(map(id, group)) for group in _needed(schema, root)] for schema in schemas}
    dependents: defaultdict[int, list[int]] = defaultdict(list)
    for one, groups in needs.items():
        for other in chain.from_iterable(groups):
            dependents[other].append(one)
    unproven = set(needs)
    waiting = list(needs)
    while waiting:
        one = waiting.pop()
        if one in unproven and not any(group <= unproven for group in needs[one]):
            unproven.discard(one)
            waiting += dependents[one]
    return unproven


def _needed(schema: dict[str, Any], root: dict[str, Any]) -> Iterator[list[Any]]:
    """Groups of schemas. Every value of `schema` is, or contains, a value of at least one schema of each group."""
    groups = [[part] for part in (_target(schema.get("$ref"), root), *schema.get("allOf", ()), *_held(schema))]
    groups += [schema[choice] for choice in ("anyOf", "oneOf") if schema.get(choice)]
    return (group for group in groups if all(isinstance(part, dict) for part in group))


def _held(schema: dict[str, Any]) -> list[Any]:
    """The schemas of the members that every value has, if a value can only be an object or only an array."""
    if schema.get("type") in ("object", ["object"]):
        properties, required = schema.get("properties", {}), schema.get("required")
        return [properties[name] for name in required if name in properties] if isinstance(required, list) else []
    if schema.get("type") in ("array", ["array"]) and isinstance(least := schema.get("minItems"), int):
        prefix = schema.get("prefixItems", [])[:least]
        return [*prefix, schema.get("items")] if least > len(prefix) else prefix
    return []


def _target(reference: Any, root: dict[str, Any]) -> Any:
    place = Pointer.parse(reference) if isinstance(reference, str) else None
    return None if place is None else place.target(root)
