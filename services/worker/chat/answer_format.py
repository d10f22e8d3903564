"""How a model writes its answers: the family of its calls and the tags of its reasoning, both told by its chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.protocol.prompts import Tool
from services.worker.chat.families import family_of
from services.worker.chat.families.harmony import HARMONY
from services.worker.chat.families.hermes import HERMES
from services.worker.chat.family import Family
from services.worker.chat.parser import Parser, PlainParser, Release
from services.worker.chat.reasoning import HARMONY_REASONING, REASONINGS, Phase, Reasoning, ReasoningParser


@dataclass(frozen=True)
class AnswerFormat:
    """`reasoning` None: the model does not reason in the open."""

    family: Family
    reasoning: Reasoning | None

    @property
    def markers(self) -> tuple[str, ...]:
        """Every text that may be a control token and that a parser has to see."""
        return (*self.family.markers, *(self.reasoning.markers if self.reasoning else ()))

    def shown_markers(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """Those that this answer's parser looks for: without tools nothing is a call."""
        return self.markers if tools or self.family is HARMONY else (self.reasoning.markers if self.reasoning else ())

    def phase(self, prompt: str) -> Phase:
        return self.reasoning.phase(prompt) if self.reasoning else Phase.ANSWERING

    def parser(
        self, prompt: str, tools: Sequence[Tool], call_id: Callable[[int], str], *, continued: Phase | None = None
    ) -> Parser:
        """For what follows the rendered prompt. `continued`: in what the prompt's last message breaks off."""
        needs_family = tools or self.family is HARMONY
        answer = self.family.parser(Release(call_id), tools, prompt) if needs_family else PlainParser()
        if self.reasoning is None or not self.reasoning.is_parsed_here:
            return answer
        phase = continued or self.phase(prompt)
        if phase is Phase.ANSWERING:
            return answer
        opened = phase is Phase.REASONING
        return ReasoningParser(self.reasoning, answer, opened=opened, continued=continued is Phase.REASONING)


def format_of(template: str, *, shows_calls: bool) -> AnswerFormat:
    """`shows_calls`: the template has a place for tools or for calls. Where it has none, the model is told of tools, and answers,
    in the manner of Hermes."""
    family = family_of(template)
    if family is HARMONY:
        return AnswerFormat(HARMONY, HARMONY_REASONING)
    reasoning = next((each for each in REASONINGS if each.close in template), None)
    return AnswerFormat(family if shows_calls else HERMES, reasoning)
