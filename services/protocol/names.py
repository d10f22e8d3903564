"""Model names as users type them: `[host/][namespace/]model[:tag]`.

Matching ignores case (as Ollama's does), and the parts of a name are safe as path segments. The display form is the
shortest one that says the same: `smollm2:135m`, `team/m:latest`, `hf.co/org/repo:Q4_K_M`.
"""

from __future__ import annotations

import re
from typing import Self

import msgspec

from services.protocol.errors import BadRequest

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# Host and tag may hold what a file name may; 80 and 128 bytes are the limits of Docker's registry for these parts.
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,254}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class ModelName(msgspec.Struct, frozen=True):
    """A complete name. `key` is what two spellings of one name share."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises BadRequest where `text` is no name."""
        match text.strip().split("/"):
            case [last]:
                place = (DEFAULT_HOST, DEFAULT_NAMESPACE)
            case [namespace, last]:
                place = (DEFAULT_HOST, namespace)
            case [host, namespace, last]:
                place = (host, namespace)
            case _:
                raise BadRequest("invalid model name")
        model, colon, tag = last.partition(":")
        name = cls(*place, model, tag if colon else DEFAULT_TAG)
        if not (
            _HOST.fullmatch(name.host)
            and _PART.fullmatch(name.namespace)
            and _PART.fullmatch(name.model)
            and _TAG.fullmatch(name.tag)
        ):
            raise BadRequest("invalid model name")
        return name

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        return self.full.lower()

    @property
    def display(self) -> str:
        if self.host.lower() != DEFAULT_HOST:
            return self.full
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"
