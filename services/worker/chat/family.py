"""Family: the models that write tool calls in the same syntax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.protocol.errors import BadRequest
from services.protocol.prompts import Tool
from services.worker.chat.lark import Rules
from services.worker.chat.parser import Parser, Release
from services.worker.engine.schema.json_schema import normalized, without_nulls


@dataclass(frozen=True)
class Family:
    """`signs`: the chat template of a model of this family contains all of them. `markers`: the texts that delimit calls. The
    parser sees them even if they are control tokens. `example`: a call of the tool NAME with the argument ARGUMENT, a string
    VALUE.

    `parser(release, tools, prompt)` parses the text after the rendered prompt. A call starts with `trigger`; `calls(rules,
    tools, many)` returns the grammar of what follows: one call of one of the tools, or several if `many`. `waits` is False if
    plain text and a call may start alike, so that a grammar cannot wait for a call. `content_begin` precedes content in a
    grammar.
    """

    name: str
    signs: tuple[str, ...]
    markers: tuple[str, ...]
    example: str
    parser: Callable[[Release, Sequence[Tool], str], Parser]
    trigger: str
    calls: Callable[[Rules, Sequence[Tool], bool], str]
    waits: bool = True
    content_begin: str = ""

    def is_used_by(self, template: str) -> bool:
        return all(sign in template for sign in self.signs)


def parameters_schema(tool: Tool) -> dict[str, Any]:
    """The schema of the tool's parameters: an object with the declared properties and, unless the schema allows more, no
    others. Raises BadRequest, which names the place of the error, if the schema cannot be compiled."""
    try:
        return normalized({"type": "object", "properties": {}, **without_nulls(tool.parameters)})
    except BadRequest as error:
        raise BadRequest(f"the parameters of the tool {tool.name}: {error}", field="tools") from error
