"""Whether a model should think before it answers, and how hard."""

from __future__ import annotations

import msgspec

from services.gateway.requests.ticket import Target
from services.protocol.errors import UnsupportedCapability


class Thinking(msgspec.Struct, frozen=True):
    """`enabled` is None if the caller didn't specify it. `effort` is empty, low, medium, high or max."""

    enabled: bool | None = None
    effort: str = ""

    def on(self, target: Target) -> bool | None:
        """The prompt's `thinking` value. As with Ollama, a model that can think does so unless the caller turns it off.

        Raises UnsupportedCapability if the caller asks for thinking and the model can't.
        """
        if target.can("thinking"):
            return self.enabled is not False
        if self.enabled:
            raise UnsupportedCapability(f'"{target.asked}" does not support thinking')
        return None
