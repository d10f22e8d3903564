"""The files of a model, before they are published."""

from __future__ import annotations

import enum
from typing import NamedTuple

from services.node.store import StagedBlob


class Role(enum.Enum):
    """What a file is in its model."""

    MODEL = enum.auto()
    LICENSE = enum.auto()


class FetchedFile(NamedTuple):
    """A file that is complete and has the promised digest. Its contents are not checked yet."""

    role: Role
    blob: StagedBlob
