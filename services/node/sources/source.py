"""The interface of a source."""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Protocol

from services.node.progress import Progress
from services.node.store import StagedBlob, Staging


class Fetched(NamedTuple):
    """A GGUF file in the staging folder, not checked yet, and the text of its licence, empty if the source has none."""

    model: StagedBlob
    license: str


class Source(Protocol):
    def fetch(self, staging: Staging, progress: Progress) -> Fetched:
        """Fetches the model. Raises CorralError if it cannot, and Stopping if the agent stops."""


def bar_digest(source: str) -> str:
    """A stand-in for a file's digest in progress lines, before the real one is known. The same for every attempt."""
    return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"
