"""Finds the JSON schemas in a Lark grammar: `%json { ... }`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_BEGIN = re.compile(r"%json\s*")
_DECODER = json.JSONDecoder()


def embedded_schemas(lark: str) -> Iterator[Any]:
    """Skips invalid JSON, which llguidance reports."""
    at = 0
    while begin := _BEGIN.search(lark, at):
        at = begin.end()
        try:
            schema, at = _DECODER.raw_decode(lark, at)
        except (json.JSONDecodeError, RecursionError):
            continue
        yield schema
