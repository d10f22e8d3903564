"""Models whose template has no syntax for calls: the prompt asks for Hermes's syntax, and the parser is tolerant.

These models were not trained on calls. Some leave out the tags, or put the object into a code fence. An object is a call only
if it names an offered tool; any other object is content.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.protocol.prompts import Tool
from services.worker.chat.families.hermes import HERMES, HermesParser
from services.worker.chat.family import Family
from services.worker.chat.json_call import JsonCall
from services.worker.chat.parser import Parser, Release

_FENCES = ("```json", "```")


class GenericParser(HermesParser):
    def __init__(self, release: Release, tools: Sequence[Tool]) -> None:
        super().__init__(release, offered={tool.name for tool in tools})
        self._before = ""
        self.state = self._bare

    def _bare(self) -> bool:
        """At the start of the answer, and after a call, an object may be a call without tags."""
        text = self.text.lstrip()
        if self.could_be(_FENCES[0], text):
            return False
        fence = next((fence for fence in _FENCES if text.startswith(fence)), "")
        body = text[len(fence) :].lstrip()
        if not body and not self.is_whole:
            return False
        if not body.startswith("{"):
            return self.go(self.begin)
        self._before = self.text[: len(self.text) - len(body)]
        self.text = body
        self.call = JsonCall(self.release, offered=self._offered, before=self._before)
        return self.go(self._in_bare)

    def _in_bare(self) -> bool:
        return self.read_call(complete=self._after_bare, broken=self.after_broken_call, no_call=self.begin)

    def _after_bare(self) -> bool:
        fence = "```" if "```" in self._before else ""
        if not self.skip_space() or self.could_be(fence, self.text):
            return False
        self.text = self.text.removeprefix(fence)
        return self.go(self._bare)


def _parser(release: Release, tools: Sequence[Tool], prompt: str) -> Parser:
    return GenericParser(release, tools)


GENERIC = Family(
    name="generic",
    signs=(),
    markers=HERMES.markers,
    example=HERMES.example,
    parser=_parser,
    trigger=HERMES.trigger,
    calls=HERMES.calls,
)
