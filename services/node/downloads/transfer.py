"""Which bytes of a file have arrived, and which part is fetched next. Pure."""

from __future__ import annotations

from services.node.downloads.ranges import Range, Ranges, gaps, total, union

MIB = 1024**2

#: A part is a 64th of the file within these limits: large enough that requests cost little, small enough that all connections
#: are busy until the end.
MIN_PART_BYTES = 4 * MIB
MAX_PART_BYTES = 64 * MIB

#: At most this share of a file, or this many bytes of a small one, arrives between two saved records. A crash loses that much.
SAVE_SHARE = 1 / 200
MIN_SAVE_BYTES = 64 * 1024


class Transfer:
    """The state of one download. `done` has the bytes that are in the file. A part is taken, filled from its start, and released
    when its connection ends, complete or not; what is left of it can be taken again.

    `whole`: the server does not answer requests for ranges. The file is one part, and begins again at its first byte if that
    part breaks off.
    """

    def __init__(self, size: int, done: Ranges = (), *, whole: bool = False) -> None:
        self.size = size
        self.done = () if whole else done
        self.whole = whole
        self._parts: list[Range] = []

    @property
    def completed(self) -> int:
        return total(self.done)

    @property
    def missing(self) -> int:
        return self.size - self.completed

    @property
    def save_bytes(self) -> int:
        return max(int(self.size * SAVE_SHARE), MIN_SAVE_BYTES)

    def take(self) -> Range | None:
        """The first part that no connection fetches. None if the file is complete, or if other connections fetch the rest."""
        free = gaps(union([*self.done, *self._parts]), self.size)
        if not free:
            return None
        part = Range(free[0].start, min(free[0].stop, free[0].start + self._part_bytes))
        self._parts.append(part)
        return part

    def write(self, start: int, count: int) -> None:
        """Records that `count` bytes at `start` are in the file."""
        self.done = union([*self.done, Range(start, start + count)])

    def release(self, part: Range) -> None:
        self._parts.remove(part)
        if self.whole and self.missing:
            self.done = ()

    @property
    def _part_bytes(self) -> int:
        return self.size if self.whole else min(max(self.size // 64, MIN_PART_BYTES), MAX_PART_BYTES)
