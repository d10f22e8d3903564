"""Whether and how hard a model is asked to think before it answers."""

from __future__ import annotations

import msgspec

from services.gateway.ticket import Target
from services.protocol.errors import UnsupportedCapability


class Thinking(msgspec.Struct, frozen=True):
    """`wanted` None: nothing was said of it. `effort` is empty or one of low, medium, high and max."""

    wanted: bool | None = None
    effort: str = ""

    def on(self, target: Target) -> bool | None:
        """What the prompt says: a model that can think does so unless it is told not to, as with Ollama.

        Raises UnsupportedCapability.
        """
        if target.can("thinking"):
            return self.wanted is not False
        if self.wanted:
            raise UnsupportedCapability(f'"{target.asked}" does not support thinking')
        return None
