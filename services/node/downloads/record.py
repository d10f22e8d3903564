"""The progress of a download, as it is saved beside the file. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from services.node.downloads.location import Location
from services.node.downloads.ranges import Range, Ranges, union


class Record(msgspec.Struct, frozen=True):
    """`done` lists the bytes that are safely on the disk. `digest` is that of the complete file (`sha256:<hex>`), and empty until
    it is verified."""

    size: int
    validator: str
    done: tuple[tuple[int, int], ...] = ()
    digest: str = ""

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def decode(data: bytes) -> Record | None:
    """None if the bytes are not a valid record: a crash or a stranger wrote them."""
    try:
        record = msgspec.json.decode(data, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    ranges = [Range(*one) for one in record.done]
    valid = union(ranges) == tuple(ranges) and all(one.start >= 0 and one.stop <= record.size for one in ranges)
    return record if valid else None


def resumed(record: Record | None, location: Location, *, digest: str) -> Ranges:
    """The bytes that a download from `location` does not need to fetch. Without a digest or a validator it is unknown whether it
    is still the same file, so all are fetched."""
    if record is None or not location.ranged or record.size != location.size:
        return ()
    if not digest and (not location.validator or record.validator != location.validator):
        return ()
    return tuple(Range(*one) for one in record.done)


def verified_digest(record: Record | None, location: Location) -> str:
    """The digest that the file at `location` had when it was downloaded before; empty if it may have changed since."""
    same = record and location.validator and (record.size, record.validator) == (location.size, location.validator)
    return record.digest if record and same else ""


def key_of(identity: str, digest: str) -> str:
    """The name of the partial file. Downloads with the same key share it: those of one digest from any place, otherwise those of
    one URL."""
    return hashlib.sha256((digest or identity).encode()).hexdigest()
