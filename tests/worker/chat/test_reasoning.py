from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.protocol.prompts import Tool
from services.worker.chat.answer_format import AnswerFormat, format_of
from services.worker.chat.parser import Parser
from services.worker.chat.reasoning import Phase
from tests.worker.chat.answers import TOOLS, Answer, MakeParser, read, read_in_all_cuts
from tests.worker.chat.templates import CHATML, TEMPLATES

THINKER = CHATML + "{# </think> #}"
CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


def parser(
    source: str = THINKER, *, prompt: str = "hi", tools: tuple[Tool, ...] = (), continued: Phase | None = None
) -> MakeParser:
    format = format_of(source, shows_calls=True)

    def make() -> Parser:
        return format.parser(prompt, tools, lambda index: f"id{index}", continued=continued)

    return make


@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("<think>\nOne. \n\nTwo.\n</think>\n\nThree. \n", "Three. \n", "One. \n\nTwo."),
        ("\n <think></think>x", "x", ""),
        ("No thought <think> here", "No thought <think> here", ""),
        ("<thin ice", "<thin ice", ""),
        ("<think>cut off </thi", "", "cut off </thi"),
        (" \n", " \n", ""),
        ("", "", ""),
    ],
)
def test_reasoning_before_the_content(text: str, content: str, reasoning: str) -> None:
    assert read_in_all_cuts(parser(), text) == Answer(content, reasoning)


@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("One.\n</think>\n\nTwo.", "Two.", "One."),
        ("<think>\nagain</think>Two.", "Two.", "again"),
        ("never closed", "", "never closed"),
    ],
)
def test_the_prompt_may_open_the_reasoning(text: str, content: str, reasoning: str) -> None:
    assert read_in_all_cuts(parser(prompt="<|im_start|>assistant\n<think>\n"), text) == Answer(content, reasoning)


def test_the_prompt_may_close_the_reasoning() -> None:
    text = "<think> is a tag"
    assert read_in_all_cuts(parser(prompt="assistant\n<think>\n\n</think>\n\n"), text) == Answer(text)


def test_continued_reasoning_and_continued_content() -> None:
    assert read_in_all_cuts(parser(continued=Phase.REASONING), " so on</think>x") == Answer("x", " so on")
    assert read_in_all_cuts(parser(continued=Phase.ANSWERING), " <think>") == Answer(" <think>")


def test_calls_after_reasoning() -> None:
    assert read_in_all_cuts(parser(tools=TOOLS), f"<think>hm</think>\n\n{CALL}") == Answer("", "hm", [["clock", "{}"]])
    assert read_in_all_cuts(parser(tools=TOOLS), f"<think>{CALL}</think>") == Answer("", CALL, [])


def test_without_tools_nothing_is_a_call() -> None:
    assert read_in_all_cuts(parser(), CALL) == Answer(CALL)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "think", ">", " ", "\n", "a", CALL]), max_size=12), st.booleans())
def test_splits_make_no_difference(pieces: list[str], opened: bool) -> None:
    make = parser(prompt="<think>" if opened else "", tools=TOOLS)
    text = "".join(pieces)
    assert read(make, pieces) == read(make, text) == read(make, [text])


@pytest.mark.parametrize(
    ("source", "tags"),
    [
        (CHATML, None),
        ("{{ messages[0].content.split('</think>')[-1] }}", "<think>"),
        ("[THINK]{{ x }}[/THINK]", "[THINK]"),
        (TEMPLATES["gemma4"], "<|channel>thought\n"),
        (TEMPLATES["harmony"], "<|channel|>analysis<|message|>"),
    ],
)
def test_the_template_determines_the_tags(source: str, tags: str | None) -> None:
    format: AnswerFormat = format_of(source, shows_calls=True)
    assert (format.reasoning.open if format.reasoning else None) == tags
