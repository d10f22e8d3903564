from __future__ import annotations

import pytest

from services.protocol.errors import BadRequest, ContextLengthExceeded, UnsupportedCapability
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt, TextPrompt
from services.worker.chat.template import ChatTemplate
from services.worker.engine.fake import CHAT_TEMPLATE, FakeRunner
from services.worker.prompt import PromptBuilder

RUNNER = FakeRunner(context_tokens=64)
BUILDER = PromptBuilder(RUNNER, ChatTemplate(CHAT_TEMPLATE, bos_text="", eos_text=""))


def build(prompt: Prompt, *, truncate: bool = False, context: tuple[int, ...] = ()) -> str:
    request = GenerateRequest(
        id="r",
        version="v",
        gateway="g",
        caller="c",
        prompt=prompt,
        context=context,
        overflow="truncate" if truncate else "refuse",
    )
    return bytes(BUILDER.build(request)).decode()


def chat(*turns: str) -> ChatPrompt:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return ChatPrompt(tuple(ChatMessage(roles[turn[0]], turn[2:]) for turn in turns))


def test_a_chat_is_rendered_and_a_text_is_not() -> None:
    assert build(chat("u:hi")) == "<user>hi\n<assistant>"
    assert build(TextPrompt("hi")) == "hi"


def test_context_precedes_the_prompt() -> None:
    assert build(TextPrompt("hi"), context=tuple(b"before ")) == "before hi"


def test_an_empty_prompt_is_still_a_token() -> None:
    assert build(TextPrompt("")) == "\n"


def test_the_longest_prompt_that_fits_leaves_room_for_one_token() -> None:
    assert len(build(TextPrompt("x" * 63))) == 63
    with pytest.raises(ContextLengthExceeded):
        build(TextPrompt("x" * 64))


def test_truncation_of_a_chat_keeps_the_system_prompt_and_the_newest_turns() -> None:
    turns = ["s:be brief", *[f"u:question {n}" for n in range(9)]]
    assert build(chat(*turns), truncate=True) == ("<system>be brief\n<user>question 7\n<user>question 8\n<assistant>")


def test_a_last_message_that_does_not_fit_is_refused_all_the_same() -> None:
    with pytest.raises(ContextLengthExceeded):
        build(chat("u:old", "u:" + "x" * 64), truncate=True)


def test_truncation_of_a_text_keeps_its_end() -> None:
    assert build(TextPrompt("a" * 60 + "b" * 10), truncate=True) == "a" * 53 + "b" * 10


def test_context_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ContextLengthExceeded):
        build(TextPrompt("hi"), truncate=True, context=tuple(b"x" * 64))


def test_context_of_another_model_is_refused() -> None:
    with pytest.raises(BadRequest, match="does not have"):
        build(TextPrompt("hi"), context=(RUNNER.num_vocab,))


def test_chat_without_a_template() -> None:
    with pytest.raises(UnsupportedCapability):
        PromptBuilder(RUNNER, None).build(GenerateRequest(id="r", version="v", gateway="g", caller="c", prompt=chat("u:hi")))
