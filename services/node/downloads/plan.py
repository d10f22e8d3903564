"""What a source offers for download: files by role, each with a way to find out where its bytes are now."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from services.node.downloads.location import Location
from services.node.downloads.web import Session
from services.node.model_file import Role


class RemoteFile(Protocol):
    """A file that a server holds.

    - `identity`: the file's name for resuming. May contain secrets: it is only ever hashed.
    - `shown`: the file's name in messages, without secrets.
    - `digest`: `sha256:<hex>`, empty if the source does not know it.
    """

    @property
    def identity(self) -> str: ...

    @property
    def shown(self) -> str: ...

    @property
    def digest(self) -> str: ...

    async def resolve(self, session: Session) -> Location:
        """Asks where the file is: at the start of a download, and again if the location stops working. Raises CorralError if the
        source refuses, and Broken if it may answer later."""


class PlannedFile(NamedTuple):
    role: Role
    file: RemoteFile


class RemoteSource(Protocol):
    """A source whose files `Downloads` fetches."""

    async def plan(self, session: Session) -> tuple[PlannedFile, ...]:
        """The files of the model. Raises as `RemoteFile.resolve` does."""
