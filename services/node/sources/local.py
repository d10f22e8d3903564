"""A GGUF file on the node. It is copied, because a blob in the store must not change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from services.node.model_file import FetchedFile, Role
from services.node.progress import Progress, bar_digest
from services.node.store import Staging
from services.protocol.errors import BadRequest, NotFound
from services.weights import gguf

_CHUNK_BYTES = 4 * 1024**2


class LocalSource:
    def __init__(self, path: str, folders: tuple[Path, ...]) -> None:
        """`folders`: where the file may be, links resolved."""
        self._path = Path(path)
        self._folders = folders

    def fetch(self, staging: Staging, progress: Progress) -> tuple[FetchedFile, ...]:
        self._require_allowed()
        self._require_file()
        try:
            gguf.read(self._path)  # refuses a bad file before it is copied
            staging.claim.set(self._path.stat().st_size)
            return (FetchedFile(Role.MODEL, staging.write(self._chunks(progress))),)
        except PermissionError as error:
            raise BadRequest(f"{self._path} cannot be read by this node's agent") from error

    def _require_allowed(self) -> None:
        """Runs before any access to the file, so that a caller cannot find out which files exist outside the folders."""
        self._path, asked = self._path.resolve(), self._path
        if not any(self._path.is_relative_to(folder.resolve()) for folder in self._folders):
            listed = ", ".join(map(str, self._folders)) or "none"
            raise BadRequest(f"{asked} is outside of the folders that this node imports from (CORRAL_IMPORT_PATHS: {listed})")

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
