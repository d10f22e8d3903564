"""The interface that each dialect's replies implement."""

from __future__ import annotations

from typing import Protocol

from services.protocol.errors import CorralError
from services.protocol.messages import Event


class Reply(Protocol):
    """Renders events as they arrive: parts of a stream, or nothing until the last event returns the whole body."""

    @property
    def stream(self) -> bool: ...

    @property
    def content_type(self) -> str: ...

    def render(self, event: Event) -> bytes: ...

    def render_error(self, error: CorralError) -> bytes:
        """Renders the error as the last part of a stream that has already started."""
        ...
