"""FunctionGemma and Gemma 4: `call:name{key:value,...}` between two markers, with a third marker as the quotation mark.

`<start_function_call>call:name{city:<escape>Paris<escape>}<end_function_call>`
`<|tool_call>call:name{city:<|"|>Paris<|"|>}<tool_call|>`
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.protocol.prompts import Tool
from services.worker.chat.family import Family, parameters_schema
from services.worker.chat.lark import Rules
from services.worker.chat.parser import Parser, Release, StateParser

_HEAD = re.compile(r"\s*call:\s*([^{\s]+)\s*(?=\{)")
_KEY = re.compile(r"\s*([^:{}\[\],]+?)\s*:")
_SCALAR = re.compile(r"[^,\]}]*")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Marks:
    """`response` starts a tool's result, which only the caller may write. If a model writes it, its answer is over."""

    open: str
    close: str
    quote: str
    response: str


FUNCTION_GEMMA_MARKS = Marks("<start_function_call>", "<end_function_call>", "<escape>", "<start_function_response>")
GEMMA4_MARKS = Marks("<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_response>")


class GemmaParser(StateParser):
    """Releases a call once it is complete."""

    def __init__(self, release: Release, marks: Marks) -> None:
        super().__init__(release)
        self._marks = marks
        self._call = ""

    def begin(self) -> bool:
        before, tag = self.until(self._marks.open, self._marks.response)
        self.release.content(before)
        self._call = ""
        return tag is not None and self.go(self._in_call if tag == self._marks.open else self._over)

    def _in_call(self) -> bool:
        before, tag = self.until(self._marks.close)
        self._call += before
        if tag or self.is_whole:
            self._release_call()
        return tag is not None and self.go(self.begin)

    def _release_call(self) -> None:
        head = _HEAD.match(self._call)
        try:
            if head is None:
                raise ValueError("no call")
            arguments = _Reader(self._call, head.end(), self._marks.quote).whole_object()
        except ValueError:
            self.release.content(self._call.replace(self._marks.quote, '"'))
            return
        self.release.call(head[1])
        self.release.arguments(json.dumps(arguments, ensure_ascii=False))

    def _over(self) -> bool:
        self.text = ""
        return False


class _Reader:
    """Reads `{key:value,...}`. Raises ValueError if the text is malformed."""

    def __init__(self, text: str, at: int, quote: str) -> None:
        self._text = text
        self._at = at
        self._quote = quote

    def whole_object(self) -> dict[str, Any]:
        value = self._object()
        self._skip_space()
        if self._at < len(self._text):
            raise ValueError("there is more behind the object")
        return value

    def _value(self) -> Any:
        self._skip_space()
        if self._text.startswith(self._quote, self._at):
            return self._quoted()
        if self._text.startswith("{", self._at):
            return self._object()
        if self._text.startswith("[", self._at):
            return self._array()
        return self._scalar()

    def _object(self) -> dict[str, Any]:
        members: dict[str, Any] = {}
        self._take("{")
        while not self._took("}"):
            key = self._key()
            members[key] = self._value()
            if not self._took(","):
                self._take("}")
                break
        return members

    def _key(self) -> str:
        self._skip_space()
        if self._text.startswith(self._quote, self._at):
            key = self._quoted()
            self._take(":")
            return key
        found = _KEY.match(self._text, self._at)
        if found is None:
            raise ValueError("no key")
        self._at = found.end()
        return found[1]

    def _array(self) -> list[Any]:
        items: list[Any] = []
        self._take("[")
        while not self._took("]"):
            items.append(self._value())
            if not self._took(","):
                self._take("]")
                break
        return items

    def _quoted(self) -> str:
        start = self._at + len(self._quote)
        end = self._text.index(self._quote, start)
        self._at = end + len(self._quote)
        return self._text[start:end]

    def _scalar(self) -> Any:
        found = _SCALAR.match(self._text, self._at)
        word = found[0].strip() if found else ""
        if not word:
            raise ValueError("no value")
        self._at += len(found[0]) if found else 0
        try:
            return json.loads(word, parse_constant=str)
        except ValueError:
            return word

    def _took(self, sign: str) -> bool:
        self._skip_space()
        if not self._text.startswith(sign, self._at):
            return False
        self._at += len(sign)
        return True

    def _take(self, sign: str) -> None:
        if not self._took(sign):
            raise ValueError(f"no {sign}")

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at


def _parser(release: Release, tools: Sequence[Tool], prompt: str, *, marks: Marks) -> Parser:
    return GemmaParser(release, marks)


def _calls(rules: Rules, tools: Sequence[Tool], many: bool, *, marks: Marks) -> str:
    writer = _Writer(rules, marks.quote)
    heads = [rules.literal(f"call:{tool.name}") for tool in tools]
    objects = [writer.of(parameters_schema(tool)) for tool in tools]
    call = rules.one_of([f"{head} {arguments}" for head, arguments in zip(heads, objects, strict=True)])
    call = rules.sequence(call, rules.literal(marks.close))
    return rules.repeated(call, between=rules.literal(marks.open)) if many else call


class _Writer:
    """Writes a schema as a grammar of this notation. Uses types, properties, items, `enum` and `const`. Ignores other keywords:
    a schema that has only those, such as a reference, allows any scalar."""

    def __init__(self, rules: Rules, quote: str) -> None:
        self._rules = rules
        self._quote = quote
        self._text = rules.sequence(rules.literal(quote), rules.until(quote))
        self._number = rules.regex(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?")
        self._integer = rules.regex(r"-?(0|[1-9][0-9]{0,14})")
        self._words = rules.regex("true|false")
        self._any = rules.one_of([self._text, self._number, self._words])

    def of(self, schema: Any) -> str:
        if not isinstance(schema, dict):
            return self._any
        if "const" in schema:
            return self._constant(schema["const"])
        if isinstance(schema.get("enum"), list):
            return self._rules.one_of([self._constant(value) for value in schema["enum"]])
        match schema.get("type"):
            case "object":
                return self._object(schema)
            case "array":
                item = self.of(schema.get("items"))
                least = schema.get("minItems", 0)
                items = f"{item} ({self._rules.literal(',')} {item})*"
                return self._rules.rule(f'"[" {items if least else f"({items})?"} "]"')
            case str() as kind:
                scalars = {"string": self._text, "number": self._number, "integer": self._integer, "boolean": self._words}
                return scalars.get(kind, self._any)
        return self._any

    def _constant(self, value: Any) -> str:
        if isinstance(value, str):
            return self._rules.literal(f"{self._quote}{value}{self._quote}")
        return self._rules.literal(json.dumps(value))

    def _object(self, schema: dict[str, Any]) -> str:
        """Properties in the schema's order, with a comma before each but the first one present."""
        properties = schema.get("properties") or {}
        required = schema.get("required", [])
        rest_of_more = rest_of_none = ""
        for key, value in reversed(properties.items()):
            member = f"{self._rules.literal(f'{key}:')} {self.of(value)}"
            more = f'"," {member} {rest_of_more}'
            first = f"{member} {rest_of_more}"
            if key not in required:
                more, first = f"{more} | {rest_of_more}", f"{first} | {rest_of_none}"
            rest_of_more, rest_of_none = self._rules.rule(more), self._rules.rule(first)
        return self._rules.rule(f'"{{" {rest_of_none} "}}"')


def _family(name: str, marks: Marks) -> Family:
    return Family(
        name=name,
        signs=(marks.open,),
        markers=(marks.open, marks.close, marks.quote, marks.response),
        example=f"{marks.open}call:NAME{{ARGUMENT:{marks.quote}VALUE{marks.quote}}}{marks.close}",
        parser=partial(_parser, marks=marks),
        trigger=marks.open,
        calls=partial(_calls, marks=marks),
    )


FUNCTION_GEMMA = _family("function-gemma", FUNCTION_GEMMA_MARKS)
GEMMA4 = _family("gemma4", GEMMA4_MARKS)
