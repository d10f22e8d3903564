"""Hermes 2 Pro, Qwen 2.5, Qwen 3 and many others: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, once per call."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set

from services.protocol.prompts import Tool
from services.worker.chat.family import Family, parameters_schema
from services.worker.chat.json_call import JsonCall, JsonCallParser
from services.worker.chat.lark import Rules
from services.worker.chat.parser import Parser, Release

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(JsonCallParser):
    """`offered`: see JsonCall."""

    def __init__(self, release: Release, *, offered: Set[str] | None = None) -> None:
        super().__init__(release)
        self._offered = offered

    def begin(self) -> bool:
        before, tag = self.until(OPEN)
        self.release.content(before)
        return tag is not None and self.go(self.in_call)

    def in_call(self) -> bool:
        if not self.skip_space():
            return False
        if not self.text.startswith("{"):
            return self.go(self.malformed)
        self.call = JsonCall(self.release, offered=self._offered)
        return self.go(self._in_object)

    def _in_object(self) -> bool:
        return self.read_call(complete=self.closing, broken=self.after_broken_call, no_call=self.malformed)

    def closing(self) -> bool:
        """After a call. The closing tag may be missing at the end of the text."""
        if not self.skip_space() or self.could_be(CLOSE, self.text):
            return False
        self.text = self.text.removeprefix(CLOSE)
        return self.go(self.begin)

    def malformed(self) -> bool:
        before, tag = self.until(CLOSE)
        self.release.content(before)
        return tag is not None and self.go(self.begin)

    def after_broken_call(self) -> bool:
        """After a broken object. If its arguments had not ended, the rest belongs to them."""
        before, tag = self.until(CLOSE)
        if before and not self.call.has_arguments:
            self.release.arguments(before)
        return tag is not None and self.go(self.begin)


def _parser(release: Release, tools: Sequence[Tool], prompt: str) -> Parser:
    return HermesParser(release)


def _calls(rules: Rules, tools: Sequence[Tool], many: bool) -> str:
    objects = rules.one_of([json_call(rules, tool, arguments="arguments") for tool in tools])
    call = rules.sequence(rules.literal("\n"), objects, rules.literal("\n" + CLOSE))
    return rules.repeated(call, between=rules.literal("\n" + OPEN)) if many else call


def json_call(rules: Rules, tool: Tool, *, arguments: str) -> str:
    """A call as a JSON object. `arguments` is the name of its second member."""
    head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{arguments}": '
    return rules.sequence(rules.literal(head), rules.json(parameters_schema(tool)), rules.literal("}"))


HERMES = Family(
    name="hermes",
    signs=(OPEN,),
    markers=(OPEN, CLOSE),
    example=f'{OPEN}\n{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}\n{CLOSE}',
    parser=_parser,
    trigger=OPEN,
    calls=_calls,
)
