"""Writes grammars in llguidance's variant of Lark (docs/syntax.md of llguidance)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

#: The layout of Python's `json.dumps`, as in the prompts. If any white space is allowed, a small model may write only white
#: space.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_TEXT = r"/(.|\n)*/"


class Rules:
    """The rules of one grammar. `control` maps the markers that are control tokens to their ids: to llguidance they are not
    text, so the grammar must name their ids. All other markers may consist of any tokens."""

    def __init__(self, control: Mapping[str, int]) -> None:
        self._control = control
        self._pattern = re.compile("(" + "|".join(map(re.escape, control)) + ")") if control else None
        self._rules: list[str] = []

    def rule(self, body: str, *, options: str = "") -> str:
        """Adds a rule and returns its name."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def sequence(self, *terms: str) -> str:
        return self.rule(" ".join(terms))

    def repeated(self, term: str, *, between: str) -> str:
        """The term once or more."""
        return self.rule(f"{term} ({between} {term})*")

    def literal(self, text: str) -> str:
        pieces = self._pattern.split(text) if self._pattern else [text]
        return " ".join(self._term(piece) for piece in pieces if piece)

    def _term(self, text: str) -> str:
        token = self._control.get(text)
        return _quoted(text) if token is None else f"<[{token}]>"

    def until(self, marker: str) -> str:
        """Any text up to the marker, and the marker itself."""
        control = next((control for control in self._control if marker.startswith(control)), None)
        if control is not None:
            return self.sequence(self.rule(_TEXT), self.literal(marker))
        return self.rule(_TEXT, options=f"[suffix={_quoted(marker)}]")

    def any_text(self) -> str:
        return self.rule(_TEXT)

    def one_of(self, bodies: list[str]) -> str:
        return self.rule(" | ".join(bodies))

    def json(self, schema: Any) -> str:
        laid_out = {**schema, "x-guidance": _LAYOUT} if isinstance(schema, dict) else schema
        return self.rule(f"%json {json.dumps(laid_out, ensure_ascii=False)}")

    def regex(self, pattern: str) -> str:
        return self.rule("/" + re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", pattern) + "/")

    def grammar(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._rules]) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
