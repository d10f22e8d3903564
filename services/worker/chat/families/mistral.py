"""Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, since late 2025 `[TOOL_CALLS]name[ARGS]{...}` per call."""

from __future__ import annotations

from collections.abc import Sequence

from services.protocol.prompts import Tool
from services.worker.chat.families.hermes import json_call
from services.worker.chat.family import Family, parameters_schema
from services.worker.chat.json_call import JsonCall, JsonCallParser
from services.worker.chat.lark import Rules
from services.worker.chat.parser import Parser, Prose, Release

CALLS, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


class MistralParser(JsonCallParser):
    """Parses both forms."""

    def begin(self) -> bool:
        before, tag = self.until(CALLS)
        self.release.content(before)
        return tag is not None and self.go(self._calls_begin)

    def _calls_begin(self) -> bool:
        if not self.skip_space():
            return False
        if self.text.startswith(("[", "{")):
            self.text = self.text.removeprefix("[")
            return self.go(self._in_array)
        self._name = ""
        return self.go(self._in_name)

    def _in_array(self) -> bool:
        self.text = self.text.lstrip(" \t\r\n,")
        if not self.text:
            return False
        if self.text.startswith("{"):
            self.call = JsonCall(self.release)
            return self.go(self._in_object)
        self.text = self.text.removeprefix("]")
        return self.go(self.begin)

    def _in_object(self) -> bool:
        return self.read_call(complete=self._in_array, broken=self.after_broken_call, no_call=self.begin)

    def after_broken_call(self) -> bool:
        before, tag = self.until(CALLS)
        if not self.call.has_arguments:
            self.release.arguments(before)
        return tag is not None and self.go(self._calls_begin)

    def _in_name(self) -> bool:
        before, tag = self.until(ARGUMENTS, CALL_ID, "{", CALLS)
        self._name += before
        if tag is None or tag == CALLS:
            if tag or self.is_whole:
                self.release.content(self._name)
            return tag is not None and self.go(self._calls_begin)
        self.release.call(self._name.strip())
        if tag == "{":
            self.text = tag + self.text
        self._arguments = Prose(trimmed=True)
        self._has_arguments = False
        return self.go(self._in_id if tag == CALL_ID else self._in_arguments)

    def _in_id(self) -> bool:
        _, tag = self.until(ARGUMENTS)
        return tag is not None and self.go(self._in_arguments)

    def _in_arguments(self) -> bool:
        before, tag = self.until(CALLS)
        shown = self._arguments.push(before)
        self._has_arguments = self._has_arguments or bool(shown)
        self.release.arguments(shown)
        if not self._has_arguments and (tag or self.is_whole):
            self.release.arguments("{}")
        return tag is not None and self.go(self._calls_begin)


def _parser(release: Release, tools: Sequence[Tool], prompt: str) -> Parser:
    return MistralParser(release)


def _array(rules: Rules, tools: Sequence[Tool], many: bool) -> str:
    call = rules.one_of([json_call(rules, tool, arguments="arguments") for tool in tools])
    calls = rules.repeated(call, between=rules.literal(", ")) if many else call
    return rules.sequence(rules.literal("["), calls, rules.literal("]"))


def _named(rules: Rules, tools: Sequence[Tool], many: bool) -> str:
    calls = [rules.sequence(rules.literal(tool.name + ARGUMENTS), rules.json(parameters_schema(tool))) for tool in tools]
    call = rules.one_of(calls)
    return rules.repeated(call, between=rules.literal(CALLS)) if many else call


_MARKERS = (CALLS, ARGUMENTS, CALL_ID)

MISTRAL_ARGS = Family(
    name="mistral-args",
    signs=(CALLS, ARGUMENTS),
    markers=_MARKERS,
    example=f'{CALLS}NAME{ARGUMENTS}{{"ARGUMENT": "VALUE"}}',
    parser=_parser,
    trigger=CALLS,
    calls=_named,
)

MISTRAL = Family(
    name="mistral",
    signs=(CALLS,),
    markers=_MARKERS,
    example=f'{CALLS}[{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}]',
    parser=_parser,
    trigger=CALLS,
    calls=_array,
)
