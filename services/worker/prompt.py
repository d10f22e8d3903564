"""From a request's prompt to token ids that fit the context. Pure: a vocabulary and a template in, ids out."""

from __future__ import annotations

from bisect import bisect_left

from services.protocol.errors import BadRequest, ContextLengthExceeded, UnsupportedCapability
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, TextPrompt
from services.worker.chat.template import ChatTemplate
from services.worker.engine.runner import ModelRunner

#: Ollama's words (llm/server.go), which clients show as they are.
_TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the context "
    "length in settings, or use a model with a longer context length"
)


class PromptBuilder:
    """`template` None: the model cannot chat."""

    def __init__(self, runner: ModelRunner, template: ChatTemplate | None) -> None:
        self._runner = runner
        self._template = template

    def build(self, request: GenerateRequest) -> list[int]:
        """At least one token, and fewer than the context holds. Raises ContextLengthExceeded, UnsupportedCapability, or
        BadRequest from the template or for token ids that the model does not have, which llama.cpp takes badly."""
        if any(token >= self._runner.num_vocab for token in request.context):
            raise BadRequest("context: holds token ids that the model does not have")
        limit = self._runner.context_tokens - 1 - len(request.context)
        match request.prompt:
            case TextPrompt(text):
                ids = self._runner.tokenize(text, special=True)
                if len(ids) > limit and request.overflow == "truncate" and limit > 0:
                    ids = ids[-limit:]
            case ChatPrompt(messages):
                ids = self._chat(messages, limit, truncate=request.overflow == "truncate")
        if len(ids) > limit:
            raise ContextLengthExceeded(_TOO_LONG)
        return [*request.context, *ids] or self._runner.tokenize("\n", special=False)

    def _chat(self, messages: tuple[ChatMessage, ...], limit: int, *, truncate: bool) -> list[int]:
        ids = self._render(messages)
        if len(ids) <= limit or not truncate:
            return ids
        system = tuple(message for message in messages[:-1] if message.role == "system")
        turns = tuple(message for message in messages[:-1] if message.role != "system")

        def kept(dropped: int) -> list[int]:
            return self._render((*system, *turns[dropped:], messages[-1]))

        fewest = bisect_left(range(len(turns)), True, key=lambda dropped: len(kept(dropped)) <= limit)
        return kept(fewest)

    def _render(self, messages: tuple[ChatMessage, ...]) -> list[int]:
        if self._template is None:
            raise UnsupportedCapability("the model has no chat template")
        return self._runner.tokenize(self._template.render(messages), special=True)
