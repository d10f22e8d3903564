"""Space on the store's disk, so that pulls that run at the same time do not promise the same bytes twice."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from services.protocol.errors import Unavailable

#: Disk space that pulls leave free: a machine with a full disk cannot even log it.
_RESERVE_BYTES = 64 * 1024**2


class Room:
    """The space on the disk of `folder`. `make` removes something that is not needed, and returns false if there is nothing.
    Thread-safe."""

    def __init__(self, folder: Path, *, make: Callable[[], bool]) -> None:
        self._folder = folder
        self._make = make
        self._lock = threading.Lock()
        self._claims: set[Claim] = set()

    @contextmanager
    def claim(self) -> Iterator[Claim]:
        """A claim of no bytes yet. It ends with the block."""
        claim = Claim(self)
        with self._lock:
            self._claims.add(claim)
        try:
            yield claim
        finally:
            with self._lock:
                self._claims.remove(claim)

    def change(self, claim: Claim, size: int) -> None:
        """Raises Unavailable if the disk does not have `size` bytes for this claim besides what others claim."""
        with self._lock:
            claimed = sum(other.size for other in self._claims if other is not claim)
            while size > (free := self._free() - claimed):
                if not self._make():
                    raise Unavailable(_shortage(self._folder, size, max(free, 0)))
            claim.size = size

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free - _RESERVE_BYTES


class Claim:
    """The bytes that one pull will still write."""

    def __init__(self, room: Room) -> None:
        self.size = 0
        self._room = room

    def set(self, size: int) -> None:
        """Raises Unavailable if the disk does not have that much space."""
        self._room.change(self, size)

    def add(self, size: int) -> None:
        """Raises Unavailable if the disk does not have that much more space."""
        self.set(self.size + size)

    def spend(self, size: int) -> None:
        """Counts bytes that were written: the disk's free space has them already."""
        self.size = max(self.size - size, 0)


@contextmanager
def disk_errors(folder: Path, missing: Callable[[], int] | None = None) -> Iterator[None]:
    """Raises Unavailable if the disk, or the user's quota, is full. `missing`: how many bytes did not fit."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        more = f"; {megabytes(missing())} more are needed" if missing else ""
        raise Unavailable(f"the disk that holds {folder} is full{more}") from error


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _shortage(folder: Path, need: int, free: int) -> str:
    return (
        f"not enough disk space in {folder}: {megabytes(need)} needed, {megabytes(free)} free besides what other pulls will write; "
        f"{megabytes(need - free)} are missing"
    )
