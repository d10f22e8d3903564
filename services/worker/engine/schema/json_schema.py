"""Checks a JSON schema and rewrites it in the form that llguidance compiles.

llguidance compiles Draft 2020-12 and ignores keywords that it does not know. This module knows the keywords of all drafts: it
refuses constraints that cannot be compiled and names their place, updates older spellings, and drops annotations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from services.worker.engine.schema.endless import endless
from services.worker.engine.schema.one_of import OneOf
from services.worker.engine.schema.pointer import Pointer, refusal

#: How deep objects and arrays of a schema may be nested. llguidance's JSON parser accepts 128 levels.
MAX_DEPTH = 100

#: The most schemas within one. Compiling an object takes time proportional to the square of its number of properties.
MAX_SCHEMAS = 7_000

_ONE = {"additionalProperties", "items"}
_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_MAPS = {"properties", "patternProperties", "$defs", "definitions"}
_VALUES = {
    *("$anchor", "$id", "$ref", "id", "type", "enum", "const", "format", "pattern", "minLength", "maxLength", "required"),
    *("minProperties", "maxProperties", "minItems", "maxItems", "multipleOf"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}

#: Keywords that cannot be compiled, with the values that are harmless because they constrain nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "$dynamicRef": (),
    "$recursiveRef": (),
    "contains": (),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "disallow": (),
    "divisibleBy": (),
    "extends": (),
    "if": (),
    "not": (False,),
    "propertyNames": (True, {}),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "uniqueItems": (False,),
}

#: Formats of JSON Schema that llguidance has no grammar for. Any other unknown format is an annotation (`int32`, `password`).
_REFUSED_FORMATS = {
    *("idn-email", "idn-hostname", "iri", "iri-reference", "json-pointer", "relative-json-pointer", "regex"),
    *("uri-reference", "uri-template"),
}
_FORMATS = {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}

#: With any of these keywords, a schema that lists `properties` still allows others by default.
_KEEPS_OPEN = {"additionalProperties", "patternProperties", "minProperties", "maxProperties", "$ref", *_LISTS}

#: Keywords that a schema with a reference or a choice may have without becoming an intersection.
_BESIDE = {"type", "$defs", "definitions", "$id", "id", "$anchor"}

#: In a regular expression: an escaped character, or a character class.
_ESCAPE_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def normalized(schema: dict[str, Any] | bool) -> dict[str, Any]:
    """Raises BadRequest, which names the place, if the schema cannot be compiled."""
    if schema is False:
        raise refusal(Pointer(), "no value validates against false")
    _check_count(schema)
    root: dict[str, Any] = _normalized({} if schema is True else schema, Pointer())
    located = list(_subschemas(root, Pointer()))
    for node, place in located:
        _check_reference(node, root, place)
    nodes = [node for node, _ in located]
    one_of = OneOf(root)
    for node in nodes:
        if one_of.are_disjoint(node.get("oneOf", ())) and "anyOf" not in node:
            _rename(node, "oneOf", "anyOf")
    if not any(map(_intersects, nodes)):
        for node in nodes:
            _narrow(node)
    without_end = endless(nodes, root)
    for node, place in located:
        if id(node) in without_end:
            raise refusal(place, "only an infinite value validates")
    return root


def _check_count(schema: Any) -> None:
    """Called before anything is normalized. Every object and boolean counts, because it may be a schema."""
    count, level = 0, [schema]
    while level := [part for node in level for part in _values_of(node)]:
        count += sum(isinstance(part, dict | bool) for part in level)
        if count > MAX_SCHEMAS:
            raise refusal(Pointer(), f"it has more than {MAX_SCHEMAS} schemas")


def _values_of(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _subschemas(schema: Any, place: Pointer) -> Iterator[tuple[dict[str, Any], Pointer]]:
    """A normalized schema and all schemas within it, outer ones first, each with its place."""
    if isinstance(schema, dict):
        yield schema, place
    for part, where in parts(schema, place):
        yield from _subschemas(part, where)


def parts(schema: Any, place: Pointer) -> Iterator[tuple[Any, Pointer]]:
    """The schemas directly below one, each with its place."""
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        where = place / keyword
        if keyword in _ONE:
            yield value, where
        elif keyword in _LISTS:
            yield from ((part, where / index) for index, part in enumerate(value))
        elif keyword in _MAPS:
            yield from ((part, where / name) for name, part in value.items())


def _normalized(schema: Any, place: Pointer) -> Any:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise refusal(place, "a schema must be an object or a boolean")
    if len(place.steps) > MAX_DEPTH:
        raise refusal(Pointer(place.steps[:8]), f"schemas are nested deeper than {MAX_DEPTH} levels")
    schema = _in_current_draft(schema, place)
    _check_distinct_names(schema, place)
    return {keyword: _value(keyword, value, place / keyword) for keyword, value in schema.items() if _counts(keyword, value)}


def _counts(keyword: str, value: Any) -> bool:
    """Whether the keyword constrains values. False for annotations."""
    if keyword == "format":
        return value in _FORMATS or value in _REFUSED_FORMATS
    if keyword in _REFUSED:
        return not any(type(value) is type(harmless) and value == harmless for harmless in _REFUSED[keyword])
    return keyword in _ONE or keyword in _LISTS or keyword in _MAPS or keyword in _VALUES


def _value(keyword: str, value: Any, place: Pointer) -> Any:
    if keyword in _REFUSED:
        raise refusal(place, f"'{keyword}' is not supported")
    if keyword == "format" and value in _REFUSED_FORMATS:
        raise refusal(place, f"the format '{value}' is not supported")
    if keyword in _ONE:
        return _normalized(value, place)
    if keyword in _LISTS:
        if not isinstance(value, list):
            raise refusal(place, f"'{keyword}' must be an array of schemas")
        return [_normalized(part, place / index) for index, part in enumerate(value)]
    if keyword in _MAPS:
        if not isinstance(value, dict):
            raise refusal(place, f"'{keyword}' must be an object of schemas")
        spelled = _without_control_characters if keyword == "patternProperties" else str
        return {spelled(name): _normalized(part, place / name) for name, part in value.items()}
    if keyword == "pattern" and isinstance(value, str):
        return _without_control_characters(value)
    return value


def _without_control_characters(pattern: str) -> str:
    """The pattern with control characters excluded from every negated class. If a class allows a control character, llguidance
    allows any escape sequence, even that of a quotation mark which the class excludes."""
    return _ESCAPE_OR_CLASS.sub(lambda found: re.sub(r"^\[\^", r"[^\\x00-\\x1f", found[0]), pattern)


def without_nulls(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without keywords that are null: programs write null for an option that is not set. `const` may be null."""
    return {keyword: value for keyword, value in schema.items() if value is not None or keyword == "const"}


def _in_current_draft(schema: dict[str, Any], place: Pointer) -> dict[str, Any]:
    """Updates older spellings: exclusive bounds are flags in Draft 4, and tuples are `items` in drafts up to 2019-09."""
    schema = without_nulls(schema)
    for flag, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(flag), bool) and schema.pop(flag) and bound in schema:
            schema[flag] = schema.pop(bound)
    if isinstance(schema.get("items"), list):
        if "prefixItems" in schema:
            raise refusal(place / "items", "must be a schema beside 'prefixItems'")
        _rename(schema, "items", "prefixItems")
        _rename(schema, "additionalItems", "items")
    schema.pop("additionalItems", None)
    return schema


def _check_distinct_names(schema: dict[str, Any], place: Pointer) -> None:
    """A grammar cannot keep unlisted properties from sharing a name, so `minProperties` can ask for only one of them."""
    least, listed = schema.get("minProperties"), schema.get("properties")
    if isinstance(least, int) and least - (len(listed) if isinstance(listed, dict) else 0) > 1:
        raise refusal(place / "minProperties", "cannot require more than one property beyond those in 'properties'")


def _intersects(schema: dict[str, Any]) -> bool:
    """Whether a value must match several schemas that may list properties."""
    if len(schema.get("allOf", ())) > 1:
        return True
    applied = [keyword for keyword in ("$ref", "anyOf", "oneOf", "allOf") if keyword in schema]
    return bool(applied) and (len(applied) > 1 or bool(schema.keys() - _BESIDE - {*applied}))


def _narrow(schema: dict[str, Any]) -> None:
    """Narrows a schema as llama.cpp does: a schema that describes properties or items allows only objects or arrays, and a
    schema that lists `properties` without mentioning others allows no others.

    All remaining values still match the original schema. This does not work for intersected schemas: each would forbid the
    properties of the others."""
    if not schema.keys() & {"type", "enum", "const"}:
        if "properties" in schema:
            schema["type"] = "object"
        elif schema.keys() & {"items", "prefixItems"}:
            schema["type"] = "array"
    if "properties" in schema and not schema.keys() & _KEEPS_OPEN:
        required = schema.get("required", ())
        if isinstance(required, list) and all(name in schema["properties"] for name in required):
            schema["additionalProperties"] = False


def _check_reference(schema: dict[str, Any], root: dict[str, Any], place: Pointer) -> None:
    if "$ref" not in schema:
        return
    reference = schema["$ref"]
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise refusal(place / "$ref", "a reference must point into the same schema, as in '#/$defs/name'")
    target = Pointer.parse(reference)
    if target is not None and target.target(root) is None:
        raise refusal(place / "$ref", f"there is nothing at {target}")


def _rename(schema: dict[str, Any], old: str, new: str) -> None:
    """Keeps the order of the keywords, which determines the order of the properties in the output."""
    items = [(new if keyword == old else keyword, value) for keyword, value in schema.items()]
    schema.clear()
    schema.update(items)
