"""Schemas that no finite value validates against, because they need themselves: `{"$ref": "#"}`, a list node that requires a next
one. A grammar of such a thing leads into a place from which there is no way out."""

from __future__ import annotations

from typing import Any

from services.worker.engine.grammar.pointer import Pointer


def endless(schemas: list[dict[str, Any]], root: dict[str, Any]) -> set[int]:
    """The `id` of each of `schemas` that is so; they are all those within `root`. What is false is not endless."""
    found = {id(schema) for schema in schemas}
    while finite := {id(schema) for schema in schemas if id(schema) in found and not _needs(schema, found, root)}:
        found -= finite
    return found


def _needs(schema: dict[str, Any], unproven: set[int], root: dict[str, Any]) -> bool:
    """Whether every value of the schema holds one of a schema that is not proven finite yet."""

    def open_(part: Any) -> bool:
        return isinstance(part, dict) and id(part) in unproven

    if "$ref" in schema and open_(_target(schema["$ref"], root)):
        return True
    if any(map(open_, schema.get("allOf", ()))):
        return True
    if any(schema.get(choice) and all(map(open_, schema[choice])) for choice in ("anyOf", "oneOf")):
        return True
    return any(map(open_, _held(schema)))


def _held(schema: dict[str, Any]) -> list[Any]:
    """The schemas of what every value holds, if it can only be an object, or only an array."""
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
