"""Files that are being downloaded. They survive the agent, so that the next one resumes.

    .partial/<key>.data    the bytes that have arrived, at their places
    .partial/<key>.json    the record (`record.py`): which bytes these are

A partial is removed a day after its last progress, and earlier if another pull needs the space. The record of a file that was
moved into the store stays for that day: a second pull of the same file then finds the blob.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from services.node.downloads import record as records
from services.node.downloads.record import Record
from services.protocol.errors import InvalidModelFile

KEPT_S = 24 * 3600.0


class PartialInUse(Exception):
    """Another pull downloads this file now: `partial`."""

    def __init__(self, partial: Partial) -> None:
        super().__init__()
        self.partial = partial


class Partial:
    """One file, opened by one pull. `completed` and `total` are for progress lines; other threads may read them."""

    def __init__(self, folder: Path, key: str) -> None:
        self.path = folder / f"{key}.data"
        self.completed = 0
        self.total = 0
        self._record = folder / f"{key}.json"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def load(self) -> Record | None:
        """The saved record, if there is one. Lists no bytes if the file does not have all that were saved."""
        try:
            record = records.decode(self._record.read_bytes())
        except FileNotFoundError:
            return None
        size = os.fstat(self._file).st_size
        if record and any(stop > size for _, stop in record.done):
            return msgspec.structs.replace(record, done=())
        return record

    def save(self, record: Record) -> None:
        """Saves the record after the bytes that it lists. Either may be lost in a crash, but not the bytes alone."""
        os.fdatasync(self._file)
        partial = self._record.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(record.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._record)

    def write(self, start: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, start)
            view, start = view[written:], start + written

    def read(self, start: int, count: int) -> bytes:
        return os.pread(self._file, count, start)

    def clear(self) -> None:
        """Removes all bytes, and the record that lists them."""
        self._record.unlink(missing_ok=True)
        os.ftruncate(self._file, 0)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._file)


class Partials:
    """The partial files of one store. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: dict[str, Partial] = {}
        folder.mkdir(exist_ok=True)
        self.drop_expired()

    @contextmanager
    def open(self, key: str) -> Iterator[Partial]:
        """A partial file, created if needed. It is removed if the block refuses it with InvalidModelFile, or ends without an error:
        the store has the file then. Raises PartialInUse."""
        self.drop_expired()
        with self._lock:
            if key in self._open:
                raise PartialInUse(self._open[key])
            partial = self._open[key] = Partial(self._folder, key)
        try:
            yield partial
            partial.path.unlink(missing_ok=True)
        except InvalidModelFile:
            partial.discard()
            raise
        finally:
            with self._lock:
                del self._open[key]
                partial.close()
                self._drop_empty(partial.path)

    def drop_expired(self) -> None:
        """Removes partials without progress for KEPT_S, and files that are no partials."""
        with self._lock:
            for path, changed_at in self._idle():
                if time.time() - changed_at > KEPT_S or path.suffix not in (".data", ".json"):
                    path.unlink(missing_ok=True)

    def drop_oldest(self) -> bool:
        """Removes the idle partial with the oldest progress. False if there is none."""
        with self._lock:
            found = [(changed_at, path) for path, changed_at in self._idle() if path.suffix == ".data"]
            if not found:
                return False
            path = min(found)[1]
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
            return True

    def _idle(self) -> list[tuple[Path, float]]:
        """The files of the partials that no pull uses, with the times of their last changes."""
        return [
            (Path(entry.path), entry.stat().st_mtime)
            for entry in os.scandir(self._folder)
            if Path(entry.path).stem not in self._open
        ]

    def _drop_empty(self, path: Path) -> None:
        if path.exists() and not path.stat().st_size:
            path.unlink()
