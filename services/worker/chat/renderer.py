"""Renderer: renders the GGUF's own chat template. `python -m services.worker.chat.renderer` is the process with limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from services.protocol.errors import BadRequest, InvalidModelFile
from services.protocol.prompts import ChatMessage, ChatPrompt
from services.worker.chat.dialect import Dialect, dialect_of
from services.worker.chat.literals import ControlTexts
from services.worker.chat.messages import function, turns
from services.worker.chat.rendering import Rendered, Rendering, TemplateSetup
from services.worker.chat.sandbox import Sandbox
from services.worker.limited_child import serve

#: The longest rendered chat, in characters.
MAX_PROMPT_CHARACTERS = 1 << 24

#: A template's own error message is cut to this many characters.
MAX_REFUSAL_CHARACTERS = 1000

#: Marks the end of a last message that the model continues. Two noncharacters of Unicode.
_CONTINUATION_MARK = "\ufdd0\ufdd1"

_SURROGATE = re.compile("[\ud800-\udfff]")


class Renderer:
    """Raises InvalidModelFile if the source is not a template."""

    def __init__(self, setup: TemplateSetup) -> None:
        self._template = _compiled(setup.source)
        self._control = ControlTexts(setup.control_texts)
        self._specials = {"bos_token": setup.bos_text, "eos_token": setup.eos_text}
        self.dialect: Dialect = dialect_of(setup.source, self._attempt)

    def render(self, rendering: Rendering) -> Rendered:
        """The prompt, up to the point at which the assistant's answer starts or continues. Raises BadRequest with the
        template's own error message if it refuses the chat."""
        prompt = rendering.prompt
        try:
            text = self._render(self._variables(prompt, rendering.example))
        except (BadRequest, MemoryError):
            raise
        except Exception as error:  # untrusted code may raise anything
            raise BadRequest(f"the model's chat template refuses these messages: {_reason(error)}") from error
        return Rendered(self._control.segments(_cut(text) if prompt.continue_final else text))

    def _variables(self, prompt: ChatPrompt, example: str) -> dict[str, Any]:
        dialect, marked = self.dialect, self._control.marked
        messages = (*prompt.messages[:-1], _to_be_continued(prompt)) if prompt.continue_final else prompt.messages
        return {
            **marked(prompt.template_kwargs),
            **marked(_reasoning_variables(prompt)),
            "messages": turns(messages, prompt.tools, dialect, example=example, marked=marked),
            "tools": marked([function(tool) for tool in prompt.tools])
            if prompt.tools and dialect.knows_tools
            else dialect.no_tools,
            "add_generation_prompt": not prompt.continue_final,
        }

    def _render(self, variables: Mapping[str, Any]) -> str:
        text = self._template.render({**variables, **self._specials})
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise BadRequest(
                f"the model's chat template renders these messages to more than {MAX_PROMPT_CHARACTERS} characters"
            )
        return _well_formed(text)

    def _attempt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str | None:
        try:
            return self._render({"messages": messages, "tools": tools, "add_generation_prompt": False})
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - untrusted code; any failure is a refusal
            return None


def _compiled(source: str) -> jinja2.Template:
    try:
        return Sandbox().from_string(source)
    except (jinja2.TemplateSyntaxError, SyntaxError, RecursionError) as error:  # Python refuses code that is nested too deeply
        raise InvalidModelFile(f"the model's chat template does not parse: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return _well_formed(str(error))[:MAX_REFUSAL_CHARACTERS]


def _well_formed(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text)


def _to_be_continued(prompt: ChatPrompt) -> ChatMessage:
    message = prompt.messages[-1] if prompt.messages else ChatMessage("", "")
    if message.role != "assistant" or message.tool_calls:
        raise BadRequest("only an assistant's message without tool calls can be continued")
    if message.reasoning and not message.content:
        return ChatMessage(message.role, "", reasoning=message.reasoning + _CONTINUATION_MARK)
    return ChatMessage(message.role, message.content + _CONTINUATION_MARK, reasoning=message.reasoning)


def _cut(text: str) -> str:
    before, here, _ = text.rpartition(_CONTINUATION_MARK)
    if not here:
        raise BadRequest("the model's chat template does not show the last message, so it cannot be continued")
    return before


def _reasoning_variables(prompt: ChatPrompt) -> dict[str, Any]:
    """Most templates read `enable_thinking`, DeepSeek's and Granite's `thinking`, gpt-oss's and others `reasoning_effort`."""
    variables: dict[str, Any] = {}
    if prompt.thinking is not None:
        variables.update(enable_thinking=prompt.thinking, thinking=prompt.thinking)
    if prompt.reasoning_effort:
        variables["reasoning_effort"] = prompt.reasoning_effort
    return variables


def start(setup: TemplateSetup) -> tuple[Dialect, Any]:
    renderer = Renderer(setup)
    return renderer.dialect, renderer.render


if __name__ == "__main__":
    serve(TemplateSetup, Rendering, start)
