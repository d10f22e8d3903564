from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.protocol.errors import BadRequest, ContextLengthExceeded, UnsupportedCapability
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Prompt, TextPrompt, Tool, ToolCall, ToolChoice
from services.protocol.sampling import JsonObject
from services.worker.chat.truncation import longest_fitting, possible_cuts, shortened
from services.worker.engine.fake import CHAT_TEMPLATE, FakeRunner
from services.worker.prompt import Preparation, PromptBuilder
from tests.worker.chat.templates import HERMES, MISTRAL, template_of
from tests.worker.chat.vocabularies import ControlRunner, deltas

RUNNER = FakeRunner(context_tokens=64)
CONTENTS = "{% for m in messages %}{{ m.content }}|{% endfor %}"
BUILDER = PromptBuilder(RUNNER, template_of(CHAT_TEMPLATE))


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


def test_an_empty_prompt_becomes_a_token() -> None:
    assert build(TextPrompt("")) == "\n"


def test_the_longest_prompt_that_fits_leaves_room_for_one_token() -> None:
    assert len(build(TextPrompt("x" * 63))) == 63
    with pytest.raises(ContextLengthExceeded):
        build(TextPrompt("x" * 64))


def test_truncation_of_a_chat_keeps_the_system_prompt_and_the_newest_turns() -> None:
    turns = ["s:be brief", *[f"u:question {n}" for n in range(9)]]
    assert build(chat(*turns), truncate=True) == ("<system>be brief\n<user>question 7\n<user>question 8\n<assistant>")


def test_a_last_message_that_does_not_fit_loses_its_start() -> None:
    long = "u:" + "x" * 90 + "the end"
    assert build(chat("u:old", long), truncate=True) == "<user>" + "x" * 38 + "the end\n<assistant>"
    assert build(chat("s:be brief", long), truncate=True) == "<system>be brief\n<user>" + "x" * 21 + "the end\n<assistant>"
    with pytest.raises(ContextLengthExceeded, match="it has 115 tokens, and the context holds 64.*--context") as caught:
        build(chat(long))
    assert caught.value.field == "messages"


def test_the_longest_messages_lose_their_starts_equally() -> None:
    asked = chat("s:" + "s" * 70, "u:" + "u" * 50, "a:brief")
    builder = PromptBuilder(RUNNER, template_of(CONTENTS))
    shown = bytes(prepare(builder, asked, overflow="truncate").tokens).decode()
    assert shown == "s" * 27 + "|" + "u" * 27 + "|brief|"


@given(st.lists(st.tuples(st.sampled_from("sua"), st.integers(0, 300)), min_size=1, max_size=6), st.integers(40, 200))
def test_a_truncated_chat_always_fits(turns: list[tuple[str, int]], context_tokens: int) -> None:
    builder = PromptBuilder(
        FakeRunner(context_tokens=context_tokens),
        template_of(CONTENTS),
    )
    prompt = chat(*(f"{role}:{'x' * length}" for role, length in turns))
    assert len(prepare(builder, prompt, overflow="truncate").tokens) < context_tokens


@given(st.integers(0, 10_000), st.integers(1, 500))
def test_longest_fitting_is_exact_to_two_percent(most: int, start: int) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= most

    assert most - most // 50 - 1 <= longest_fitting(fits, start=start) <= most
    assert max(tried) <= max(2 * most + 1, start)


def test_truncation_of_a_text_keeps_its_end() -> None:
    assert build(TextPrompt("a" * 60 + "b" * 10), truncate=True) == "a" * 53 + "b" * 10


def test_too_long_a_context_is_truncated_or_refused() -> None:
    context = tuple(b"a" * 30 + b"b" * 34)
    assert build(TextPrompt("hi"), truncate=True, context=context) == "a" * 27 + "b" * 34 + "hi"
    assert build(TextPrompt("h" * 70), truncate=True, context=context) == "h" * 63
    with pytest.raises(ContextLengthExceeded, match="it has 66 tokens, and the context holds 64"):
        build(TextPrompt("hi"), context=context)


def test_context_of_another_model_is_refused() -> None:
    for unknown in (RUNNER.num_vocab, -1):
        with pytest.raises(BadRequest, match=f"token id {unknown} is out of range: the model has") as caught:
            build(TextPrompt("hi"), context=(unknown,))
        assert caught.value.field == "context"


def test_a_chat_without_a_template_is_refused() -> None:
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
        # Whole exchanges are dropped, the oldest first.
        ("s u1 a1 u2 a2 u3", ["s u1 a1 u2 a2 u3", "s u2 a2 u3", "s u3"]),
        # After the last question, the oldest calls are dropped with their results.
        ("u1 a1 u2 c t c t t c t", ["u1 a1 u2 c t c t t c t", "u2 c t c t t c t", "u2 c t t c t", "u2 c t"]),
        # Only the answer to be continued and its question are left.
        ("u1 a1 u2 a2", ["u1 a1 u2 a2", "u2 a2"]),
        ("a1 a2 a3", ["a1 a2 a3", "a2 a3", "a3"]),
        ("u1", ["u1"]),
        ("s t", ["s t"]),
        ("", [""]),
    ],
)
def test_the_order_in_which_a_long_chat_is_shortened(messages: str, kept: list[str]) -> None:
    roles = {"s": "system", "u": "user", "a": "assistant", "c": "assistant", "t": "tool"}
    calls = {"c": CALLS.tool_calls}

    def named(text: str) -> tuple[ChatMessage, ...]:
        return tuple(ChatMessage(roles[name[0]], name, tool_calls=calls.get(name[0], ())) for name in text.split())

    whole = named(messages)
    chats = [shortened(whole, cut) for cut in possible_cuts(whole)]
    found = [" ".join(message.content for message in chat) for chat in chats]
    # The last cut may keep the same messages as an earlier one.
    assert list(dict.fromkeys(found)) == kept


def test_truncation_skips_cuts_that_the_template_refuses() -> None:
    source = (
        "{% for m in messages %}{{ raise_exception('the user speaks first') if loop.first and m.role != 'user' }}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    builder = PromptBuilder(RUNNER, template_of(source))
    turns = [f"{'ua'[n % 2]}:{'x' * 10}{n}" for n in range(9)]
    shown = bytes(prepare(builder, chat(*turns), overflow="truncate").tokens).decode()
    assert shown == "[user]xxxxxxxxxx6[assistant]xxxxxxxxxx7[user]xxxxxxxxxx8"
    with pytest.raises(BadRequest, match="the user speaks first"):
        prepare(builder, chat("a:" + "x" * 90, "u:hi", "a:hi"), overflow="refuse")


class InfillRunner(FakeRunner):
    fim_prefix: int | None = ord("<")
    fim_suffix: int | None = ord("|")
    fim_middle: int | None = ord(">")


def infill(text: str, suffix: str, **request: Any) -> str:
    runner = InfillRunner(context_tokens=64)
    return bytes(prepare(PromptBuilder(runner, None), TextPrompt(text, suffix), **request).tokens).decode()


def test_infill_has_prefix_suffix_and_middle_tokens() -> None:
    assert infill("def f(", "return x") == "<def f(|return x>"
    with pytest.raises(UnsupportedCapability, match="insert"):
        prepare(BUILDER, TextPrompt("def f(", "return x"))


def test_truncation_of_an_infill_keeps_the_text_around_the_gap() -> None:
    assert (
        infill("a" * 60 + "b" * 40, "c" * 20 + "d" * 20, overflow="truncate") == "<" + "a" * 5 + "b" * 40 + "|" + "c" * 15 + ">"
    )
    assert infill("a" * 10, "c" * 99, overflow="truncate") == "<" + "a" * 10 + "|" + "c" * 50 + ">"
    assert infill("a" * 99, "c" * 5, overflow="truncate") == "<" + "a" * 55 + "|" + "c" * 5 + ">"
    with pytest.raises(ContextLengthExceeded):
        infill("a" * 60, "b")


def test_a_constraint_is_passed_on() -> None:
    prepared = prepare(BUILDER, chat("u:hi"), constraint=JsonObject())
    assert (prepared.constraint, prepared.after) == (JsonObject(), None)


def test_ids_of_calls_depend_on_request_choice_and_position() -> None:
    runner = ControlRunner()
    builder = PromptBuilder(runner, template_of(HERMES))
    text = runner.tokenize('<tool_call>{"name": "clock"}</tool_call>' * 2, special=True)

    def ids(request: str, choice: int) -> list[str]:
        prompt = ChatPrompt((ChatMessage("user", "hi"),), tools=(Tool("clock"),))
        released = deltas(prepare(builder, prompt, id=request).output(choice), text)
        return [call.id for delta in released for call in delta.tool_calls if call.name]

    found = [id for request in ("r", "s") for choice in (0, 1) for id in ids(request, choice)]
    assert len(set(found)) == 8
    assert all(re.fullmatch("call_[a-z0-9]{8}", id) for id in found)
    assert ids("r", 0) == found[:2]


def test_only_the_parser_sees_markers_that_are_control_tokens() -> None:
    runner = ControlRunner(["[TOOL_CALLS]", "[THINK]", "[/THINK]"], context_tokens=512)
    builder = PromptBuilder(runner, template_of(MISTRAL + "{# [/THINK] #}"))
    text = runner.tokenize('[THINK]hm[/THINK][TOOL_CALLS][{"name": "clock"}]', special=True)
    asked = ChatPrompt((ChatMessage("user", "hi"),), tools=(Tool("clock"),))

    released = deltas(prepare(builder, asked).output(0), text)
    assert "".join(delta.reasoning for delta in released) == "hm"
    assert [call.name for delta in released for call in delta.tool_calls if call.name] == ["clock"]

    released = deltas(prepare(builder, chat("u:hi")).output(0), text)
    assert "".join(delta.text for delta in released) == '[{"name": "clock"}]'


def test_a_separate_template_for_tools() -> None:
    plain = template_of(CHAT_TEMPLATE)
    builder = PromptBuilder(ControlRunner(), plain, tool_template=template_of(HERMES))
    tools = (Tool("clock"),)
    asked = ChatPrompt((ChatMessage("user", "hi"),), tools=tools)
    assert b"<tools>" in bytes(prepare(builder, asked).tokens)
    assert bytes(prepare(builder, msgspec.structs.replace(asked, tools=())).tokens) == b"<user>hi\n<assistant>"
    none = msgspec.structs.replace(asked, tool_choice=ToolChoice("none"))
    assert bytes(prepare(builder, none).tokens) == b"<user>hi\n<assistant>"
