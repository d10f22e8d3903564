"""gpt-oss: messages on channels (OpenAI's harmony format).

`<|channel|>analysis<|message|>reasoning<|end|><|start|>assistant<|channel|>final<|message|>content`
A call is a message to a function: `<|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>`
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from services.protocol.prompts import Tool
from services.worker.chat.family import Family, parameters_schema
from services.worker.chat.lark import Rules
from services.worker.chat.parser import Parser, Prose, Release, StateParser

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
_ASSISTANT = START + "assistant"
_FUNCTIONS = "functions."

#: Starts the answer itself, after all reasoning.
FINAL = f"{CHANNEL}final{MESSAGE}"

_CHANNEL_NAME = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_RECIPIENT = re.compile(r"to=([^\s<]+)")


class HarmonyParser(StateParser):
    """The analysis channel is reasoning, a message to a function is a call, everything else is content."""

    def __init__(self, release: Release, tools: Sequence[Tool]) -> None:
        super().__init__(release)
        self._offered = {tool.name for tool in tools}
        self._header = ""
        self._has_content = False
        self._reasoning = Prose(trimmed=True)
        self._arguments = Prose(trimmed=True)

    def begin(self) -> bool:
        """Between messages. Text without a header is content."""
        text = self.text.lstrip()
        if not text or any(self.could_be(sign, text) for sign in (START, CHANNEL, "to=")):
            return False
        if not text.startswith((START, CHANNEL, "to=")):
            return self.go(self._in_content)
        self._header = ""
        return self.go(self._in_header)

    def resume(self, prompt: str) -> None:
        """Continues from the state in which the prompt leaves the assistant's last message."""
        _, started, message = prompt.rpartition(_ASSISTANT)
        if started:
            self.text = message
            self._advance()
            self.release.restart()
            self.text, self._reasoning, self._has_content = "", Prose(), False

    def _in_header(self) -> bool:
        before, tag = self.until(MESSAGE)
        self._header += before
        return tag is not None and self.go(self._message_begins)

    def _message_begins(self) -> bool:
        channel = _CHANNEL_NAME.search(self._header)
        recipient = _RECIPIENT.search(self._header)
        name = recipient[1].removeprefix(_FUNCTIONS) if recipient else ""
        if recipient and (recipient[1].startswith(_FUNCTIONS) or name in self._offered):
            self.release.call(name)
            self._arguments = Prose(trimmed=True)
            self._has_arguments = False
            return self.go(self._in_call)
        # Each message is a separate paragraph.
        if recipient or (channel and channel[1] == "analysis"):
            self._reasoning.push("\n\n")
            return self.go(self._in_reasoning)
        if self._has_content:
            self.release.content("\n\n")
        return self.go(self._in_content)

    def _message(self) -> tuple[str, str | None]:
        return self.until(END, CALL, RETURN, START, CHANNEL)

    def _ended(self, tag: str | None) -> bool:
        if tag in {START, CHANNEL}:
            self.text = f"{tag}{self.text}"
        return tag is not None and self.go(self.begin)

    def _in_content(self) -> bool:
        before, tag = self._message()
        self._has_content = self._has_content or bool(before)
        self.release.content(before)
        return self._ended(tag)

    def _in_reasoning(self) -> bool:
        before, tag = self._message()
        self.release.reasoning(self._reasoning.push(before))
        return self._ended(tag)

    def _in_call(self) -> bool:
        before, tag = self._message()
        shown = self._arguments.push(before)
        self._has_arguments = self._has_arguments or bool(shown)
        self.release.arguments(shown)
        if not self._has_arguments and (tag or self.is_whole):
            self.release.arguments("{}")
            self._has_arguments = True
        return self._ended(tag)


def _parser(release: Release, tools: Sequence[Tool], prompt: str) -> Parser:
    parser = HarmonyParser(release, tools)
    parser.resume(prompt)
    return parser


def _calls(rules: Rules, tools: Sequence[Tool], many: bool) -> str:
    """A single call, because `<|call|>` ends the text."""
    heads = [rules.literal(f" to={_FUNCTIONS}{tool.name} {CONSTRAIN}json{MESSAGE}") for tool in tools]
    schemas = [rules.json(parameters_schema(tool)) for tool in tools]
    return rules.one_of([f"{head} {schema}" for head, schema in zip(heads, schemas, strict=True)])


HARMONY = Family(
    name="harmony",
    signs=(CHANNEL, MESSAGE),
    markers=(START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN),
    example=f'{CHANNEL}commentary to={_FUNCTIONS}NAME {CONSTRAIN}json{MESSAGE}{{"ARGUMENT": "VALUE"}}',
    parser=_parser,
    trigger=f"{CHANNEL}commentary",
    calls=_calls,
    waits=False,
    content_begin=FINAL,
)
