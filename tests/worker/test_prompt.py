from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from services.protocol.errors import BadRequest, ContextLengthExceeded, UnsupportedCapability
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt, TextPrompt, Tool, ToolCall, ToolChoice
from services.protocol.sampling import JsonObject
from services.worker.chat.template import ChatTemplate
from services.worker.chat.truncation import shortened
from services.worker.engine.fake import CHAT_TEMPLATE, FakeRunner
from services.worker.prompt import Preparation, PromptBuilder
from tests.worker.chat.templates import HERMES, MISTRAL
from tests.worker.chat.vocabularies import ControlRunner, deltas

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
    return bytes(BUILDER.prepare(request).tokens).decode()


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
    with pytest.raises(BadRequest, match="does not have"):
        build(TextPrompt("hi"), context=(-1,))


def test_chat_without_a_template() -> None:
    with pytest.raises(UnsupportedCapability):
        prepare(PromptBuilder(RUNNER, None), chat("u:hi"))
    assert prepare(PromptBuilder(RUNNER, None), TextPrompt("hi")).tokens == list(b"hi")


def prepare(builder: PromptBuilder, prompt: Prompt, *, id: str = "r", **request: Any) -> Preparation:
    return builder.prepare(GenerateRequest(id=id, version="v", gateway="g", caller="c", prompt=prompt, **request))


CALLS = ChatMessage("assistant", "", tool_calls=(ToolCall("1", "clock", "{}"),))
RESULT = ChatMessage("tool", "noon", tool_call_id="1")


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        # Whole exchanges go, the oldest first.
        ("s u1 a1 u2 a2 u3", ["s u1 a1 u2 a2 u3", "s u2 a2 u3", "s u3"]),
        # Behind the last question the oldest calls go, with their results.
        ("u1 a1 u2 c t c t t c t", ["u1 a1 u2 c t c t t c t", "u2 c t c t t c t", "u2 c t t c t", "u2 c t"]),
        # Nothing but the answer that is to be continued, and its question.
        ("u1 a1 u2 a2", ["u1 a1 u2 a2", "u2 a2"]),
        ("a1 a2 a3", ["a1 a2 a3", "a2 a3", "a3"]),
        ("u1", ["u1"]),
        ("s t", ["s t"]),
        ("", [""]),
    ],
)
def test_what_is_left_of_a_chat_that_is_too_long(messages: str, kept: list[str]) -> None:
    roles = {"s": "system", "u": "user", "a": "assistant", "c": "assistant", "t": "tool"}
    calls = {"c": CALLS.tool_calls}

    def named(text: str) -> tuple[ChatMessage, ...]:
        return tuple(ChatMessage(roles[name[0]], name, tool_calls=calls.get(name[0], ())) for name in text.split())

    found = [" ".join(message.content for message in chat) for chat in shortened(named(messages))]
    # The last cut may leave what the anchors keep in any case.
    assert list(dict.fromkeys(found)) == kept


def test_truncation_skips_what_the_template_refuses() -> None:
    source = (
        "{% for m in messages %}{{ raise_exception('the user speaks first') if loop.first and m.role != 'user' }}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    builder = PromptBuilder(RUNNER, ChatTemplate(source, bos_text="", eos_text=""))
    turns = [f"{'ua'[n % 2]}:{'x' * 10}{n}" for n in range(9)]
    shown = bytes(prepare(builder, chat(*turns), overflow="truncate").tokens).decode()
    assert shown == "[user]xxxxxxxxxx6[assistant]xxxxxxxxxx7[user]xxxxxxxxxx8"
    with pytest.raises(BadRequest, match="the user speaks first"):
        prepare(builder, chat("a:" + "x" * 90, "u:hi", "a:hi"), overflow="refuse")


class InfillRunner(FakeRunner):
    fim_prefix, fim_suffix, fim_middle = ord("<"), ord("|"), ord(">")


def infill(text: str, suffix: str, **request: Any) -> str:
    runner = InfillRunner(context_tokens=64)
    return bytes(prepare(PromptBuilder(runner, None), TextPrompt(text, suffix), **request).tokens).decode()


def test_a_text_is_filled_in_between_prefix_and_suffix() -> None:
    assert infill("def f(", "return x") == "<def f(|return x>"
    with pytest.raises(UnsupportedCapability, match="insert"):
        prepare(BUILDER, TextPrompt("def f(", "return x"))


def test_truncation_of_an_infill_keeps_what_lies_around_the_gap() -> None:
    assert (
        infill("a" * 60 + "b" * 40, "c" * 20 + "d" * 20, overflow="truncate") == "<" + "a" * 5 + "b" * 40 + "|" + "c" * 15 + ">"
    )
    assert infill("a" * 10, "c" * 99, overflow="truncate") == "<" + "a" * 10 + "|" + "c" * 50 + ">"
    assert infill("a" * 99, "c" * 5, overflow="truncate") == "<" + "a" * 55 + "|" + "c" * 5 + ">"
    with pytest.raises(ContextLengthExceeded):
        infill("a" * 60, "b")


def test_a_constraint_is_handed_on() -> None:
    prepared = prepare(BUILDER, chat("u:hi"), constraint=JsonObject())
    assert (prepared.constraint, prepared.after) == (JsonObject(), None)


def test_ids_of_calls_follow_from_the_request_its_choice_and_their_place() -> None:
    runner = ControlRunner()
    builder = PromptBuilder(runner, ChatTemplate(HERMES, bos_text="", eos_text=""))
    text = runner.tokenize('<tool_call>{"name": "clock"}</tool_call>' * 2, special=True)

    def ids(request: str, choice: int) -> list[str]:
        prompt = ChatPrompt((ChatMessage("user", "hi"),), tools=(Tool("clock"),))
        released = deltas(prepare(builder, prompt, id=request).output(choice), text)
        return [call.id for delta in released for call in delta.tool_calls if call.name]

    found = [id for request in ("r", "s") for choice in (0, 1) for id in ids(request, choice)]
    assert len(set(found)) == 8
    assert all(re.fullmatch("call_[a-z0-9]{8}", id) for id in found)
    assert ids("r", 0) == found[:2]


def test_markers_that_are_control_tokens_are_seen_by_the_parser_and_by_nobody_else() -> None:
    runner = ControlRunner(["[TOOL_CALLS]", "[THINK]", "[/THINK]"], context_tokens=512)
    builder = PromptBuilder(runner, ChatTemplate(MISTRAL + "{# [/THINK] #}", bos_text="", eos_text=""))
    text = runner.tokenize('[THINK]hm[/THINK][TOOL_CALLS][{"name": "clock"}]', special=True)
    asked = ChatPrompt((ChatMessage("user", "hi"),), tools=(Tool("clock"),))

    released = deltas(prepare(builder, asked).output(0), text)
    assert "".join(delta.reasoning for delta in released) == "hm"
    assert [call.name for delta in released for call in delta.tool_calls if call.name] == ["clock"]

    released = deltas(prepare(builder, chat("u:hi")).output(0), text)
    assert "".join(delta.text for delta in released) == '[{"name": "clock"}]'


def test_a_template_of_its_own_for_tools() -> None:
    plain = ChatTemplate(CHAT_TEMPLATE, bos_text="", eos_text="")
    builder = PromptBuilder(ControlRunner(), plain, tool_template=ChatTemplate(HERMES, bos_text="", eos_text=""))
    tools = (Tool("clock"),)
    asked = ChatPrompt((ChatMessage("user", "hi"),), tools=tools)
    assert b"<tools>" in bytes(prepare(builder, asked).tokens)
    assert bytes(prepare(builder, msgspec.structs.replace(asked, tools=())).tokens) == b"<user>hi\n<assistant>"
    none = msgspec.structs.replace(asked, tool_choice=ToolChoice("none"))
    assert bytes(prepare(builder, none).tokens) == b"<user>hi\n<assistant>"
