"""How a dialect answers one generation."""

from __future__ import annotations

from typing import Protocol

from services.protocol.errors import CorralError
from services.protocol.messages import Event


class Reply(Protocol):
    """Turns events into bytes as they come: parts of a stream, or nothing until the last event brings the whole body."""

    @property
    def stream(self) -> bool: ...

    @property
    def content_type(self) -> str: ...

    def render(self, event: Event) -> bytes: ...

    def render_error(self, error: CorralError) -> bytes:
        """The last part of a stream that fails after it began."""
        ...
