"""A family: models that write their tool calls in the same syntax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.protocol.errors import BadRequest
from services.protocol.prompts import Tool
from services.worker.chat.lark import Rules
from services.worker.chat.parser import Parser, Release
from services.worker.engine.grammar.json_schema import normalized


@dataclass(frozen=True)
class Family:
    """`signs`: each stands in the chat template of a model of this family. `markers`: the texts that delimit calls, which may be
    control tokens of the vocabulary and then are shown to the parser all the same. `example`: a call of the tool NAME with the
    one argument ARGUMENT, whose value is the text VALUE.

    `parser(release, tools, prompt)` reads what follows the rendered prompt. A call begins with `trigger`; `calls(rules, tools,
    many)` gives the grammar of what follows it: one call of one of the tools, or with `many` several. `waits` False: nothing in
    a text tells that a call begins, so that a grammar cannot wait for one. `content_begin` stands before content in a grammar.
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
    """The tool's parameters as an object that holds what is declared and, unless the schema says so, nothing else. Raises
    BadRequest naming the place of what cannot be compiled."""
    try:
        return normalized({"type": "object", "properties": {}, **tool.parameters})
    except BadRequest as error:
        raise BadRequest(f"the parameters of the tool {tool.name}: {error}") from error
