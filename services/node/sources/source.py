"""The interface of a source."""

from __future__ import annotations

from typing import Protocol

from services.node.model_file import FetchedFile
from services.node.progress import Progress
from services.node.store import Staging


class Source(Protocol):
    def fetch(self, staging: Staging, progress: Progress) -> tuple[FetchedFile, ...]:
        """Fetches the files of one model. Raises CorralError if it cannot, and Stopping if the agent stops."""
