"""Feeds transcripts to parsers in pieces and collects what they release."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from services.protocol.prompts import Tool
from services.worker.chat.families import FAMILIES
from services.worker.chat.parser import Parsed, Parser, Release

WEATHER = Tool(
    "get_weather",
    "Tells the weather.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
CLOCK = Tool("clock", "Tells the time.")
TOOLS = (WEATHER, CLOCK)

MakeParser = Callable[[], Parser]


@dataclass
class Answer:
    """`calls` holds the name and the arguments of each call."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def add(self, parsed: Parsed) -> None:
        self.content += parsed.content
        self.reasoning += parsed.reasoning
        for delta in parsed.tool_calls:
            if delta.name:
                assert delta.index == len(self.calls)
                assert delta.id == f"id{delta.index}"
                self.calls.append([delta.name, ""])
            else:
                assert delta.index == len(self.calls) - 1
                assert delta.arguments
                assert not delta.id
            self.calls[delta.index][1] += delta.arguments


def family_parser(name: str, *, prompt: str = "") -> MakeParser:
    family = next(family for family in FAMILIES if family.name == name)
    return lambda: family.parser(Release(lambda index: f"id{index}"), TOOLS, prompt)


def read(make_parser: MakeParser, pieces: Iterable[str]) -> Answer:
    parser, answer = make_parser(), Answer()
    for piece in pieces:
        answer.add(parser.push(piece))
    answer.add(parser.flush())
    return answer


def cuts(text: str) -> Iterator[list[str]]:
    """Yields the text whole, character by character, and split in two at every position."""
    yield list(text)
    for at in range(len(text)):
        yield [text[:at], text[at:]]


def read_in_all_cuts(make_parser: MakeParser, text: str) -> Answer:
    """The answer; asserts that it is the same for every cut."""
    whole = read(make_parser, [text])
    for pieces in cuts(text):
        assert read(make_parser, pieces) == whole, pieces
    return whole
