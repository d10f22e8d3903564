"""Model names as users type them: `[host/][namespace/]model[:tag]`.

Like in Ollama, matching ignores case. The parts of a name are safe as path segments. The display form leaves out a default host and
namespace: `smollm2:135m`, `team/m:latest`, `hf.co/org/repo:Q4_K_M`.
"""

from __future__ import annotations

import re
from typing import Self

import msgspec

from services.protocol.errors import BadRequest

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# All characters are allowed in file names. 80 and 128 characters are the limits of Docker's registry for these parts.
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,254}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_KEPT_TAG = re.compile(r"sha256-([0-9a-f]{64})")


class ModelName(msgspec.Struct, frozen=True):
    """A complete name, defaults filled in. `key` is the same for all spellings of a name."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises BadRequest if `text` is not a valid name."""
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

    def kept(self, digest: str) -> ModelName:
        """The name under which nodes keep version `digest` of the model after its tag has moved to another version."""
        return ModelName(self.host, self.namespace, self.model, f"sha256-{digest}")

    @property
    def kept_digest(self) -> str | None:
        """The version's digest if this name was made by `kept`, otherwise None."""
        match = _KEPT_TAG.fullmatch(self.tag)
        return match[1] if match else None
