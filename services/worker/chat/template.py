"""ChatTemplate: the GGUF's own chat template, and the format in which the model writes its answers."""

from __future__ import annotations

from typing import Protocol

from services.protocol.prompts import ChatPrompt
from services.worker.chat.answer_format import AnswerFormat, format_of
from services.worker.chat.dialect import Dialect
from services.worker.chat.reasoning import Phase
from services.worker.chat.rendering import Rendered, Rendering


class Renders(Protocol):
    """Implemented by Renderer and LimitedRenderer."""

    dialect: Dialect

    def render(self, rendering: Rendering) -> Rendered: ...


class ChatTemplate:
    """`source` is the text of the template that `renderer` renders."""

    def __init__(self, source: str, renderer: Renders) -> None:
        self._renderer = renderer
        shows_calls = renderer.dialect.knows_tools or renderer.dialect.knows_calls
        self.format: AnswerFormat = format_of(source, shows_calls=shows_calls)

    def render(self, prompt: ChatPrompt) -> Rendered:
        """The prompt, up to the point at which the assistant's answer starts or continues. Raises BadRequest with the
        template's own error message if it refuses the chat."""
        return self._renderer.render(Rendering(prompt, self.format.family.example))


def continued_phase(prompt: ChatPrompt) -> Phase | None:
    """The phase in which the last message breaks off; None if it is not to be continued."""
    if not prompt.continue_final:
        return None
    last = prompt.messages[-1]
    return Phase.REASONING if last.reasoning and not last.content else Phase.ANSWERING
