"""The interface of a source."""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Protocol

from services.node.progress import Progress
from services.node.store import StagedBlob, Staging


class Fetched(NamedTuple):
    """A GGUF file in the staging folder, not looked into yet, and its licence's text where the source has one."""

    model: StagedBlob
    license: str


class Source(Protocol):
    def fetch(self, staging: Staging, progress: Progress) -> Fetched:
        """Raises an error of the tree that says what to do about it, and Stopping when the agent does."""


def bar_digest(source: str) -> str:
    """Stands for a file in progress lines before its own digest is known: the same on every attempt."""
    return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"
