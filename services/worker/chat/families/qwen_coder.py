"""Qwen3-Coder, Qwen 3.5, Nemotron 3: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`.

A value has no quotes or escapes. The tool's schema determines whether it is a string or JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from services.protocol.prompts import Tool
from services.worker.chat.families.hermes import CLOSE, OPEN, HermesParser
from services.worker.chat.family import Family, parameters_schema
from services.worker.chat.lark import Rules
from services.worker.chat.parser import Parser, Release

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"

#: Quotation marks that start or end a JSON string: those that are not escaped.
_QUOTES = re.compile(r'(?<!\\)(?:\\\\)*"')

_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


class QwenCoderParser(HermesParser):
    """Releases strings while they are written, other values once they are complete. An object instead of a function is parsed
    as in Hermes's syntax."""

    def __init__(self, release: Release, tools: Sequence[Tool]) -> None:
        super().__init__(release)
        self._properties = {tool.name: _properties(tool) for tool in tools}
        self._name = ""
        self._key = ""
        self._value = ""
        self._num_parameters = 0

    def begin(self) -> bool:
        before, tag = self.until(OPEN, _FUNCTION)
        self.release.content(before)
        if tag == _FUNCTION:
            return self._begin_function()
        return tag is not None and self.go(self.in_call)

    def in_call(self) -> bool:
        if not self.skip_space() or self.could_be(_FUNCTION, self.text):
            return False
        if not self.text.startswith(_FUNCTION):
            return super().in_call()
        self.text = self.text[len(_FUNCTION) :]
        return self._begin_function()

    def _begin_function(self) -> bool:
        self._name, self._num_parameters = "", 0
        return self.go(self._in_name)

    def _in_name(self) -> bool:
        before, tag = self.until(">")
        self._name += before
        if tag is None:
            if self.is_whole:
                self.release.content(self._name)
            return False
        self._name = self._name.strip()
        self.release.call(self._name)
        return self.go(self._between)

    def _between(self) -> bool:
        _, tag = self.until(_PARAMETER, _FUNCTION_END, CLOSE)
        if tag == _PARAMETER:
            self._key = ""
            return self.go(self._in_key)
        if tag is None and not self.is_whole:
            return False
        self.release.arguments("}" if self._num_parameters else "{}")
        return tag is not None and self.go(self.begin if tag == CLOSE else self.closing)

    def _in_key(self) -> bool:
        before, tag = self.until(">")
        self._key += before
        return tag is not None and self.go(self._value_begins)

    def _value_begins(self) -> bool:
        if not self.text:
            return False
        self.text = self.text.removeprefix("\n")
        self._value = ""
        self._key = self._key.strip()
        if self._is_text:
            self._release_key()
            self.release.arguments('"')
        return self.go(self._in_value)

    def _in_value(self) -> bool:
        before, tag = self.until("\n" + _PARAMETER_END, _PARAMETER_END)
        if self._is_text:
            self.release.arguments(_quoted(before)[1:-1])
        else:
            self._value += before
        if tag is None:
            return False
        if tag == _PARAMETER_END and not self._is_text and _breaks_off_in_string(self._value):
            self._value += tag
            return True
        if self._is_text:
            self.release.arguments('"')
        else:
            self._release_key()
            self.release.arguments(_as_json(self._value))
        return self.go(self._between)

    def _release_key(self) -> None:
        self.release.arguments(f"{', ' if self._num_parameters else '{'}{_quoted(self._key)}: ")
        self._num_parameters += 1

    @property
    def _is_text(self) -> bool:
        return _is_text(self._properties.get(self._name, {}).get(self._key))


def _parser(release: Release, tools: Sequence[Tool], prompt: str) -> Parser:
    return QwenCoderParser(release, tools)


def _properties(tool: Tool) -> Mapping[str, Any]:
    properties = tool.parameters.get("properties")
    return properties if isinstance(properties, dict) else {}


def _is_text(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "string"


def _breaks_off_in_string(value: str) -> bool:
    return value.lstrip()[:1] in {"{", "[", '"'} and len(_QUOTES.findall(value)) % 2 == 1


def _as_json(value: str) -> str:
    """Valid JSON is unchanged, Python's True, False and None become JSON's, and anything else becomes a string."""
    word = _PYTHON_WORDS.get(value.strip())
    if word is not None:
        return word
    try:
        json.loads(value, parse_constant=_refuse)
    except ValueError:
        return _quoted(value)
    return value.strip()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _calls(rules: Rules, tools: Sequence[Tool], many: bool) -> str:
    function = rules.one_of([_function(rules, tool) for tool in tools])
    call = rules.sequence(rules.literal("\n"), function, rules.literal("\n" + CLOSE))
    return rules.repeated(call, between=rules.literal("\n" + OPEN)) if many else call


def _function(rules: Rules, tool: Tool) -> str:
    """Parameters in the schema's order. For a string only `enum` and `const` apply, because it is not written as JSON."""
    root = parameters_schema(tool)
    required = root.get("required", [])
    parameters = [
        _parameter(rules, root, key, schema) + ("" if key in required else "?") for key, schema in root["properties"].items()
    ]
    head = rules.literal(f"{_FUNCTION}{tool.name}>")
    return rules.sequence(head, *parameters, rules.literal("\n" + _FUNCTION_END))


def _parameter(rules: Rules, root: dict[str, Any], key: str, schema: Any) -> str:
    head, tail = rules.literal(f"\n{_PARAMETER}{key}>\n"), f"\n{_PARAMETER_END}"
    if not _is_text(schema):
        definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
        value = rules.json({**definitions, **schema} if isinstance(schema, dict) else schema)
    elif values := [schema["const"]] if "const" in schema else schema.get("enum"):
        value = rules.one_of([rules.literal(str(each)) for each in values])
    else:
        return rules.sequence(head, rules.until(_PARAMETER_END))
    return rules.sequence(head, value, rules.literal(tail))


QWEN_CODER = Family(
    name="qwen-coder",
    signs=(OPEN, _FUNCTION, _PARAMETER),
    markers=(OPEN, CLOSE),
    example=f"{OPEN}\n{_FUNCTION}NAME>\n{_PARAMETER}ARGUMENT>\nVALUE\n{_PARAMETER_END}\n{_FUNCTION_END}\n{CLOSE}",
    parser=_parser,
    trigger=OPEN,
    calls=_calls,
)
