"""What a request is about and whose it is, known before its body is turned into a GenerateRequest."""

from __future__ import annotations

import msgspec

from services.protocol.errors import UnsupportedCapability
from services.protocol.names import ModelName
from services.protocol.prompts import ChatMessage
from services.protocol.routes import VersionRoute


class Target(msgspec.Struct, frozen=True):
    """The version that a caller's model name stands for. `asked` is the name as it was written, which replies echo,
    `name` the tag's own."""

    asked: str
    name: ModelName
    version: VersionRoute

    def can(self, capability: str) -> bool:
        return capability in self.version.capabilities

    def require(self, capability: str, *, called: str | None = None) -> None:
        """Raises UnsupportedCapability; `called` is what the dialect calls the capability."""
        if not self.can(capability):
            raise UnsupportedCapability(f'"{self.asked}" does not support {called or capability}')

    def unsupported(self, capability: str) -> UnsupportedCapability:
        """With the full name, as clients that look for these words know it."""
        return UnsupportedCapability(f"{self.name.full} does not support {capability}")

    def with_system(self, dialogue: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
        """The version's own system prompt comes first, unless the dialogue brings one. `dialogue` is not empty."""
        if not self.version.system or dialogue[0].role == "system":
            return dialogue
        return (ChatMessage("system", self.version.system), *dialogue)


class Ticket(msgspec.Struct, frozen=True):
    """What a dialect needs besides the body to write a GenerateRequest."""

    id: str
    gateway: str
    caller: str
    target: Target
