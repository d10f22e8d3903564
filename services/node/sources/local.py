"""A GGUF file on the node. It is copied, because a blob in the store must not change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from services.node.progress import Progress
from services.node.sources.source import Fetched, bar_digest
from services.node.store import Staging
from services.protocol.errors import BadRequest, NotFound
from services.weights import gguf

_CHUNK_BYTES = 4 * 1024**2


class LocalSource:
    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def fetch(self, staging: Staging, progress: Progress) -> Fetched:
        self._require_file()
        try:
            gguf.read(self._path)  # refuses a bad file before it is copied
            staging.require_room(self._path.stat().st_size)
            return Fetched(staging.write(self._chunks(progress)), license="")
        except PermissionError as error:
            raise BadRequest(f"{self._path} cannot be read by this node's agent") from error

    def _require_file(self) -> None:
        if not self._path.exists():
            raise NotFound(f"no file {self._path} on this node")
        if not self._path.is_file():
            raise BadRequest(f"{self._path} is not a file")

    def _chunks(self, progress: Progress) -> Iterator[bytes]:
        digest = bar_digest(str(self._path))
        total = self._path.stat().st_size
        completed = 0
        with self._path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                completed += len(chunk)
                yield chunk
                progress.bar(digest, completed=completed, total=total)
