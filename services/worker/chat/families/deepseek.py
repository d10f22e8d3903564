"""DeepSeek V3 and R1, whose calls have a type and arguments in a code fence, and V3.1, whose calls have neither:

`<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>name⏎```json⏎{...}⏎```<｜tool▁call▁end｜><｜tool▁calls▁end｜>`
`<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜><｜tool▁calls▁end｜>`
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from services.protocol.prompts import Tool
from services.worker.chat.family import Family, parameters_schema
from services.worker.chat.lark import Rules
from services.worker.chat.parser import Parser, Prose, Release, StateParser

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
_FENCE, _FENCE_END = "```json\n", "\n```"


class DeepSeekParser(StateParser):
    """Parses both forms. Arguments end with the call; its markers are control tokens, so no argument can contain them."""

    def begin(self) -> bool:
        before, tag = self.until(CALLS, CALL)
        self.release.content(before)
        return tag is not None and self.go(self._type_begins if tag == CALL else self._between)

    def _between(self) -> bool:
        _, tag = self.until(CALL, CALLS_END)
        return tag is not None and self.go(self._type_begins if tag == CALL else self.begin)

    def _type_begins(self) -> bool:
        self._head = ""
        return self.go(self._in_type)

    def _in_type(self) -> bool:
        """The type or, in the newer form, the name."""
        before, tag = self.until(SEPARATOR, CALL_END)
        self._head += before
        if tag == SEPARATOR:
            return self.go(self._name_begins if self._head.strip() == "function" else self._call_begins)
        if tag == CALL_END or self.is_whole:
            self.release.content(self._head)
        return tag is not None and self.go(self._between)

    def _name_begins(self) -> bool:
        self._head = ""
        return self.go(self._in_name)

    def _in_name(self) -> bool:
        before, tag = self.until("\n")
        self._head += before
        return (tag is not None or self.is_whole) and self.go(self._fence)

    def _fence(self) -> bool:
        if self.could_be(_FENCE, self.text):
            return False
        self.text = self.text.removeprefix(_FENCE)
        return self.go(self._call_begins)

    def _call_begins(self) -> bool:
        self.release.call(self._head.strip())
        self._arguments = Prose(trimmed=True)
        self._has_arguments = False
        return self.go(self._in_arguments)

    def _in_arguments(self) -> bool:
        before, tag = self.until(_FENCE_END + CALL_END, CALL_END)
        shown = self._arguments.push(before.removesuffix(_FENCE_END) if self.is_whole else before)
        self._has_arguments = self._has_arguments or bool(shown)
        self.release.arguments(shown)
        if tag is None:
            return False
        if not self._has_arguments:
            self.release.arguments("{}")
        return self.go(self._between)


def _parser(release: Release, tools: Sequence[Tool], prompt: str) -> Parser:
    return DeepSeekParser(release)


def _calls(rules: Rules, tools: Sequence[Tool], many: bool, *, head: str, tail: str, between: str) -> str:
    heads = [rules.literal(f"{CALL}{head.format(tool.name)}") for tool in tools]
    schemas = [rules.json(parameters_schema(tool)) for tool in tools]
    call = rules.sequence(
        rules.one_of([f"{a} {b}" for a, b in zip(heads, schemas, strict=True)]), rules.literal(tail + CALL_END)
    )
    calls = rules.repeated(call, between=rules.literal(between)) if many else call
    return rules.sequence(calls, rules.literal(CALLS_END))


_MARKERS = (CALLS, CALLS_END, CALL, CALL_END, SEPARATOR)

DEEPSEEK_V3 = Family(
    name="deepseek-v3",
    signs=(CALL, "```json"),
    markers=_MARKERS,
    example=f'{CALLS}{CALL}function{SEPARATOR}NAME\n{_FENCE}{{"ARGUMENT": "VALUE"}}{_FENCE_END}{CALL_END}{CALLS_END}',
    parser=_parser,
    trigger=CALLS,
    calls=partial(_calls, head=f"function{SEPARATOR}{{}}\n{_FENCE}", tail=_FENCE_END, between="\n"),
)

DEEPSEEK_V31 = Family(
    name="deepseek-v3.1",
    signs=(CALL,),
    markers=_MARKERS,
    example=f'{CALLS}{CALL}NAME{SEPARATOR}{{"ARGUMENT": "VALUE"}}{CALL_END}{CALLS_END}',
    parser=_parser,
    trigger=CALLS,
    calls=partial(_calls, head=f"{{}}{SEPARATOR}", tail="", between=""),
)
