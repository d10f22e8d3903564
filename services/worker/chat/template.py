"""The GGUF's own chat template, rendered in a sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from services.protocol.errors import BadRequest, InvalidModelFile
from services.protocol.prompts import ChatMessage, ChatPrompt
from services.worker.chat.answer_format import AnswerFormat, format_of
from services.worker.chat.dialect import dialect_of
from services.worker.chat.messages import function, turns
from services.worker.chat.reasoning import Phase
from services.worker.chat.sandbox import Sandbox

#: Marks where the last message ends, when its answer is to be continued. Two code points that no text has.
_HERE = "\ufdd0\ufdd1"


class ChatTemplate:
    """Raises InvalidModelFile where the source is no template."""

    def __init__(self, source: str, *, bos_text: str, eos_text: str) -> None:
        self._sandbox = Sandbox()
        try:
            self._template = self._sandbox.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InvalidModelFile(f"the model's chat template does not parse: {error}") from error
        self._specials = {"bos_token": bos_text, "eos_token": eos_text}
        self._dialect = dialect = dialect_of(source, self._attempt)
        self.format: AnswerFormat = format_of(source, shows_calls=dialect.knows_tools or dialect.knows_calls)

    def render(self, prompt: ChatPrompt) -> str:
        """The text that ends where the assistant's answer begins, or goes on. Raises BadRequest where the template refuses the
        messages, in the template's own words."""
        dialect = self._dialect
        messages = (*prompt.messages[:-1], _marked(prompt)) if prompt.continue_final else prompt.messages
        variables = {
            **prompt.template_kwargs,
            **_reasoning_variables(prompt),
            "messages": turns(messages, prompt.tools, dialect, example=self.format.family.example),
            "tools": [function(tool) for tool in prompt.tools] if prompt.tools and dialect.knows_tools else dialect.no_tools,
            "add_generation_prompt": not prompt.continue_final,
        }
        try:
            text = self._render(variables)
        except Exception as error:  # foreign code: it may raise anything
            raise BadRequest(f"the model's chat template refuses these messages: {error}") from error
        return _cut(text) if prompt.continue_final else text

    def _render(self, variables: Mapping[str, Any]) -> str:
        return self._sandbox.render(self._template, {**variables, **self._specials})

    def _attempt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str | None:
        try:
            return self._render({"messages": messages, "tools": tools, "add_generation_prompt": False})
        except Exception:  # noqa: BLE001 - foreign code, and any failure is an answer
            return None


def continued_phase(prompt: ChatPrompt) -> Phase | None:
    """In what the last message breaks off; None where it is not to be continued."""
    if not prompt.continue_final:
        return None
    last = prompt.messages[-1]
    return Phase.REASONING if last.reasoning and not last.content else Phase.ANSWERING


def _marked(prompt: ChatPrompt) -> ChatMessage:
    message = prompt.messages[-1] if prompt.messages else ChatMessage("", "")
    if message.role != "assistant" or message.tool_calls:
        raise BadRequest("only an assistant's message without tool calls can be continued")
    if message.reasoning and not message.content:
        return ChatMessage(message.role, "", reasoning=message.reasoning + _HERE)
    return ChatMessage(message.role, message.content + _HERE, reasoning=message.reasoning)


def _cut(text: str) -> str:
    before, here, _ = text.rpartition(_HERE)
    if not here:
        raise BadRequest("the model's chat template does not show the last message, so it cannot be continued")
    return before


def _reasoning_variables(prompt: ChatPrompt) -> dict[str, Any]:
    """Most templates ask `enable_thinking`, DeepSeek's and Granite's `thinking`, gpt-oss's and others' `reasoning_effort`."""
    variables: dict[str, Any] = {}
    if prompt.thinking is not None:
        variables.update(enable_thinking=prompt.thinking, thinking=prompt.thinking)
    if prompt.reasoning_effort:
        variables["reasoning_effort"] = prompt.reasoning_effort
    return variables
