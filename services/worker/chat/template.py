"""The GGUF's own Jinja template, in a sandbox: it comes with the weights, so it is foreign code.

The names a template may use are those that Hugging Face's `apply_chat_template` gives it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.protocol.errors import BadRequest, InvalidModelFile
from services.protocol.prompts import ChatMessage


class ChatTemplate:
    """Raises InvalidModelFile where the source is no template."""

    def __init__(self, source: str, *, bos_text: str, eos_text: str) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InvalidModelFile(f"the model's chat template does not parse: {error}") from error
        self._specials = {"bos_token": bos_text, "eos_token": eos_text}

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt that ends where the assistant's answer begins. Raises BadRequest where the template refuses the messages."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._specials)
        except Exception as error:  # foreign code: it may raise anything
            raise BadRequest(f"the model's chat template refuses these messages: {error}") from error


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """Without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
