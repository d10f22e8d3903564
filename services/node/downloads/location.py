"""Where the bytes of a remote file are."""

from __future__ import annotations

from typing import NamedTuple


class Location(NamedTuple):
    """Where a file can be read now. `validator` is different if the file is; empty if the server gives none. `ranged`: the server
    answers requests for ranges."""

    url: str
    size: int
    validator: str
    ranged: bool
