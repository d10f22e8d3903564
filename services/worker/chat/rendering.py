"""The messages between a worker and the process that renders its chat template."""

from __future__ import annotations

import msgspec

from services.protocol.prompts import ChatPrompt


class TemplateSetup(msgspec.Struct, frozen=True):
    """A chat template. `control_texts` are the texts of the vocabulary's control tokens."""

    source: str
    bos_text: str = ""
    eos_text: str = ""
    control_texts: tuple[str, ...] = ()


class Rendering(msgspec.Struct, frozen=True):
    """A chat to render. `example` is a tool call in the syntax of the model's family."""

    prompt: ChatPrompt
    example: str


class Segment(msgspec.Struct, frozen=True):
    """A part of a rendered prompt. `special`: the texts of control tokens in it become control tokens."""

    text: str
    special: bool


class Rendered(msgspec.Struct, frozen=True):
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)
