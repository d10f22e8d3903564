"""Where in a JSON Schema an error comes from: llguidance says what is wrong, and not where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from services.worker.engine.grammar.json_schema import parts
from services.worker.engine.grammar.pointer import Pointer

#: How many parts of a schema are compiled in search of an error; beyond, the place is named less exactly.
_ATTEMPTS = 300


def smallest_failing(schema: dict[str, Any], reason: str, fails: Callable[[Any], str | None]) -> tuple[Pointer, str]:
    """Where the error `reason` of a whole schema comes from, and the reason there. `fails` compiles a schema and returns its
    reason or None; it is called a limited number of times."""
    attempts = iter(range(_ATTEMPTS))

    def failing(part: Any) -> str | None:
        return None if next(attempts, None) is None else fails(_standing_alone(schema, part))

    place, part, followed = Pointer(), schema, set[str]()
    while True:
        found = [(one, where, why) for one, where in _applied(part, place) if (why := failing(one)) is not None]
        if found:
            # A part that cannot be satisfied need not be the cause: an optional property may be left out.
            part, place, reason = next((one for one in found if one[2] == reason), found[0])
            continue
        culprit = _culprit(part, failing)
        if culprit != "$ref" or part["$ref"] in followed:
            return (place / culprit if culprit else place), reason
        followed.add(part["$ref"])
        target = Pointer.parse(part["$ref"])
        if target is None or target.target(schema) is None:
            return place / culprit, reason
        part, place = target.target(schema), target


def _applied(schema: Any, place: Pointer) -> Iterator[tuple[Any, Pointer]]:
    """The schemas directly below one, but for definitions, which do nothing by themselves."""
    definitions = {place / "$defs", place / "definitions"}
    return ((part, where) for part, where in parts(schema, place) if Pointer(where.steps[:-1]) not in definitions)


def _culprit(part: Any, failing: Callable[[Any], str | None]) -> str | None:
    """The keyword without which the part compiles, if that is one alone."""
    if not isinstance(part, dict):
        return None
    without = [keyword for keyword in part if failing({k: v for k, v in part.items() if k != keyword}) is None]
    return without[0] if len(without) == 1 else None


def _standing_alone(root: dict[str, Any], part: Any) -> Any:
    """The part as a schema of its own, in which the root's references still lead to their targets."""
    if part is root or not isinstance(part, dict):
        return part
    return {**_moved(part), "$defs": {"root": _moved(root)}}


def _moved(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            keyword: "#/$defs/root" + part[1:]
            if keyword == "$ref" and isinstance(part, str) and part[:1] == "#"
            else _moved(part)
            for keyword, part in value.items()
        }
    if isinstance(value, list):
        return [_moved(part) for part in value]
    return value
