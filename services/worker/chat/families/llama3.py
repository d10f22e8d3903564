"""Llama 3.1 and later: the whole answer is `{"name": ..., "parameters": {...}}`, possibly after `<|python_tag|>`.

An ordinary answer may be a JSON object too, so an object is a call only if it names an offered tool.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.protocol.prompts import Tool
from services.worker.chat.families.hermes import json_call
from services.worker.chat.family import Family
from services.worker.chat.json_call import JsonCall, JsonCallParser
from services.worker.chat.lark import Rules
from services.worker.chat.parser import Parser, Release

PYTHON_TAG = "<|python_tag|>"


class Llama3Parser(JsonCallParser):
    def __init__(self, release: Release, tools: Sequence[Tool]) -> None:
        super().__init__(release)
        self._offered = {tool.name for tool in tools}

    def begin(self) -> bool:
        text = self.text.lstrip()
        if not text:
            return self.is_whole and bool(self.text) and self.go(self._content)
        if self.could_be(PYTHON_TAG, text):
            return False
        if text.startswith(PYTHON_TAG):
            self.text = text[len(PYTHON_TAG) :]
            return True
        if not text.startswith("{"):
            return self.go(self._content)
        self.release.content(self.text[: -len(text)])
        self.text = text
        self.call = JsonCall(self.release, offered=self._offered)
        return self.go(self._in_object)

    def _content(self) -> bool:
        before, tag = self.until(PYTHON_TAG)
        self.release.content(before)
        return tag is not None and self.go(self.begin)

    def _in_object(self) -> bool:
        return self.read_call(complete=self._between, broken=self.after_broken_call, no_call=self._content)

    def after_broken_call(self) -> bool:
        """The end of a malformed call is unknown, so the rest of the text belongs to it."""
        if not self.call.has_arguments:
            self.release.arguments(self.text)
        self.text = ""
        return False

    def _between(self) -> bool:
        """Calls may follow each other, with or without a semicolon between them."""
        if not self.skip_space():
            return False
        self.text = self.text.removeprefix(";")
        return self.go(self.begin)


def _parser(release: Release, tools: Sequence[Tool], prompt: str) -> Parser:
    return Llama3Parser(release, tools)


def _calls(rules: Rules, tools: Sequence[Tool], many: bool) -> str:
    """A single call, because these models were not trained to make several at once."""
    return rules.one_of([json_call(rules, tool, arguments="parameters") for tool in tools])


LLAMA3 = Family(
    name="llama3",
    signs=("<|start_header_id|>", "tools"),
    markers=(PYTHON_TAG,),
    example='{"name": "NAME", "parameters": {"ARGUMENT": "VALUE"}}',
    parser=_parser,
    trigger="",
    calls=_calls,
    waits=False,
)
