"""A request's id, caller and target, which are known before its body is converted for a worker."""

from __future__ import annotations

import msgspec

from services.protocol.errors import UnsupportedCapability
from services.protocol.names import ModelName
from services.protocol.prompts import ChatMessage
from services.protocol.routes import VersionRoute


class Target(msgspec.Struct, frozen=True):
    """The version that the caller's model name resolved to. `asked` is the name as the caller wrote it, which replies repeat;
    `name` is the tag's name."""

    asked: str
    name: ModelName
    version: VersionRoute

    def can(self, capability: str) -> bool:
        return capability in self.version.capabilities

    def require(self, capability: str, *, called: str | None = None) -> None:
        """Raises UnsupportedCapability if the model lacks the capability. `called` is the dialect's name for it."""
        if not self.can(capability):
            raise UnsupportedCapability(f'"{self.asked}" does not support {called or capability}')

    def unsupported(self, capability: str, *, field: str = "") -> UnsupportedCapability:
        """The error for a missing capability. Contains the model's full name, because clients match this wording."""
        return UnsupportedCapability(f"{self.name.full} does not support {capability}", field=field)

    def with_system(self, dialogue: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
        """Prepends the version's system prompt, unless the dialogue starts with one. `dialogue` must not be empty."""
        if not self.version.system or dialogue[0].role == "system":
            return dialogue
        return (ChatMessage("system", self.version.system), *dialogue)


class Ticket(msgspec.Struct, frozen=True):
    """What a dialect needs to build a worker's request, besides the body."""

    id: str
    gateway: str
    caller: str
    target: Target
