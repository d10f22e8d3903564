"""How a model writes its answers: its tool-call family and its reasoning tags. The chat template determines both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.protocol.prompts import Tool
from services.worker.chat.families import family_of
from services.worker.chat.families.generic import GENERIC
from services.worker.chat.families.harmony import HARMONY
from services.worker.chat.family import Family
from services.worker.chat.parser import Parser, PlainParser, Release
from services.worker.chat.reasoning import HARMONY_REASONING, REASONINGS, Phase, Reasoning, ReasoningParser


@dataclass(frozen=True)
class AnswerFormat:
    """`reasoning` is None if the template has no reasoning tags."""

    family: Family
    reasoning: Reasoning | None

    @property
    def markers(self) -> tuple[str, ...]:
        """All texts that may be control tokens and that a parser must see."""
        return (*self.family.markers, *(self.reasoning.markers if self.reasoning else ()))

    def shown_markers(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """The markers that the parser of an answer looks for. Without tools there are no calls."""
        return self.markers if tools or self.family is HARMONY else (self.reasoning.markers if self.reasoning else ())

    def phase(self, prompt: str) -> Phase:
        return self.reasoning.phase(prompt) if self.reasoning else Phase.ANSWERING

    def parser(
        self,
        prompt: str,
        tools: Sequence[Tool],
        call_id: Callable[[int], str],
        *,
        continued: Phase | None = None,
        calls_only: bool = False,
    ) -> Parser:
        """The parser of the text after the rendered prompt. `continued` is the phase in which the prompt's last message breaks
        off. `calls_only`: see Release."""
        needs_family = tools or self.family is HARMONY
        release = Release(call_id, calls_only=calls_only)
        answer = self.family.parser(release, tools, prompt) if needs_family else PlainParser()
        if self.reasoning is None or not self.reasoning.is_parsed_here:
            return answer
        phase = continued or self.phase(prompt)
        if phase is Phase.ANSWERING:
            return answer
        opened = phase is Phase.REASONING
        return ReasoningParser(self.reasoning, answer, opened=opened, continued=continued is Phase.REASONING)


def format_of(template: str, *, shows_calls: bool) -> AnswerFormat:
    """`shows_calls`: the template shows tools or calls. If it does not, the model uses the generic family's syntax."""
    family = family_of(template)
    if family is HARMONY:
        return AnswerFormat(HARMONY, HARMONY_REASONING)
    reasoning = next((each for each in REASONINGS if each.close in template), None)
    return AnswerFormat(family if shows_calls else GENERIC, reasoning)
