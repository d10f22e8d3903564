"""Locates an error within a JSON schema, because llguidance reports the error but not its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from services.worker.engine.schema.json_schema import parts
from services.worker.engine.schema.pointer import Pointer

#: How many parts of a schema the search compiles at most, and for how long. After that the reported place is less exact.
_ATTEMPTS = 300
_SEARCH_TIMEOUT_S = 0.5


def smallest_failing(schema: dict[str, Any], reason: str, fails: Callable[[Any], str | None]) -> tuple[Pointer, str]:
    """The place that causes the error `reason` of the whole schema, and the reason at that place. `fails` compiles a schema and
    returns its error or None; it is called at most `_ATTEMPTS` times."""
    attempts, deadline = iter(range(_ATTEMPTS)), time.monotonic() + _SEARCH_TIMEOUT_S

    def failing(part: Any) -> str | None:
        is_over = next(attempts, None) is None or time.monotonic() > deadline
        return None if is_over else fails(_as_root_schema(schema, part))

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
    """The schemas directly below one, except definitions, which do nothing by themselves."""
    definitions = {place / "$defs", place / "definitions"}
    return ((part, where) for part, where in parts(schema, place) if Pointer(where.steps[:-1]) not in definitions)


def _culprit(part: Any, failing: Callable[[Any], str | None]) -> str | None:
    """The keyword without which the part compiles, if there is exactly one."""
    if not isinstance(part, dict):
        return None
    without = [keyword for keyword in part if failing({k: v for k, v in part.items() if k != keyword}) is None]
    return without[0] if len(without) == 1 else None


def _as_root_schema(root: dict[str, Any], part: Any) -> Any:
    """The part as a separate schema, in which the root's references still work."""
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
