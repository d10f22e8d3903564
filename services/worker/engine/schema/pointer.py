"""Pointer: a place within a JSON schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from services.protocol.errors import BadRequest


@dataclass(frozen=True)
class Pointer:
    """A JSON Pointer in a URI fragment (RFC 6901, section 6)."""

    steps: tuple[str, ...] = ()

    @classmethod
    def parse(cls, reference: str) -> Pointer | None:
        """None if the reference leads out of the document, or to an anchor."""
        if reference != "#" and not reference.startswith("#/"):
            return None
        return cls(tuple(unquote(step).replace("~1", "/").replace("~0", "~") for step in reference.split("/")[1:]))

    def __truediv__(self, step: str | int) -> Pointer:
        return Pointer((*self.steps, str(step)))

    def __str__(self) -> str:
        escaped = (step.replace("~", "~0").replace("/", "~1") for step in self.steps)
        return "#" + "".join("/" + quote(step, safe="!$&'()*+,;=:@?~") for step in escaped)

    def target(self, root: Any) -> Any:
        """The value at this place; None if there is none."""
        found = root
        for step in self.steps:
            if isinstance(found, dict):
                found = found.get(step)
            elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            else:
                return None
        return found


def refusal(place: Pointer, reason: str) -> BadRequest:
    return BadRequest(f"the JSON schema cannot be compiled at {place}: {reason}")
