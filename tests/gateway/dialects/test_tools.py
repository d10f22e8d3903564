"""Tools, `tool_choice` and the tool calls of a conversation, in both dialects."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from services.gateway.dialects import ollama, openai
from services.gateway.dialects.bodies import InvalidField
from services.protocol.errors import BadRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, Tool, ToolCall, ToolChoice
from tests.gateway.dialects.transcripts import ticket

FULL = "registry.ollama.ai/library/smollm2:135m"
CALLS_TOOLS = ("completion", "chat", "tools")
USER = {"role": "user", "content": "Hi"}
PARAMETERS = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}, "required": ["z"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now", "strict": True}}

Ask = Callable[..., ChatPrompt]


def ask_openai(changes: dict[str, Any], **version: Any) -> ChatPrompt:
    raw = json.dumps({"model": "smollm2:135m", "messages": [USER], **changes}).encode()
    prompt = openai.chat_request(openai.decode_chat(raw), ticket(**version)).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt


def ask_ollama(changes: dict[str, Any], **version: Any) -> ChatPrompt:
    raw = json.dumps({"model": "smollm2:135m", "messages": [USER], **changes}).encode()
    prompt = ollama.chat_request(ollama.decode_chat(raw), ticket(**version)).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt


both = pytest.mark.parametrize("ask", [ask_openai, ask_ollama])


@both
def test_tools_are_read(ask: Ask) -> None:
    prompt = ask({"tools": [WEATHER, NOW]}, capabilities=CALLS_TOOLS)
    assert prompt.tools == (Tool("weather", "Of a city", PARAMETERS), Tool("now", strict=True))
    assert list(prompt.tools[0].parameters["properties"]) == ["z", "a"]
    assert prompt.tool_choice == ToolChoice("auto")
    assert prompt.parallel_tool_calls
    assert not ask({"tools": [NOW], "parallel_tool_calls": False}, capabilities=CALLS_TOOLS).parallel_tool_calls


@both
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ("any", ToolChoice("required")),
        ({"type": "function", "function": {"name": "now"}}, ToolChoice("required", "now")),
    ],
)
def test_tool_choice(ask: Ask, choice: Any, expected: ToolChoice) -> None:
    prompt = ask({"tools": [WEATHER, NOW], "tool_choice": choice})
    assert (prompt.tool_choice, len(prompt.tools)) == (expected, 2)


@both
def test_tools_are_accepted_if_the_template_has_none(ask: Ask) -> None:
    for choice in (None, "auto"):
        assert [tool.name for tool in ask({"tools": [WEATHER], "tool_choice": choice}).tools] == ["weather"]
    assert ask({"tools": [], "tool_choice": "auto"}).tools == ()


@both
def test_allowed_tools_limit_the_choice(ask: Ask) -> None:
    named = [{"type": "function", "function": {"name": "now"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
    prompt = ask({"tools": [WEATHER, NOW], "tool_choice": choice})
    assert (prompt.tools, prompt.tool_choice) == ((Tool("now", strict=True),), ToolChoice("required"))


@both
@pytest.mark.parametrize(
    ("changes", "message", "field"),
    [
        ({"tools": [WEATHER], "tool_choice": "often"}, "must be 'auto', 'none', 'required' or name a function", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "custom"}}, "must be 'auto', 'none', 'required'", "tool_choice"),
        ({"tool_choice": "required"}, "requires a tool, but the request has none", "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "now"}}},
            "there is no tool named 'now'",
            "tool_choice",
        ),
        ({"tools": [{"type": "web_search"}]}, "must be 'function'", "tools[0].type"),
        ({"tools": [WEATHER, {"type": "function"}]}, "is required", "tools[1].function.name"),
        ({"tools": [{"function": {"name": ""}}]}, "is required", "tools[0].function.name"),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"maximum": 2**70}}}]},
            "contains an integer of more than 64 bits",
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"function": {"name": "f", "parameters": []}}]},
            "expected object, got array",
            "tools[0].function.parameters",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]},
            "is required",
            "messages[1].tool_calls[0].function.name",
        ),
    ],
)
def test_invalid_tools_are_refused(ask: Ask, changes: dict[str, Any], message: str, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        ask(changes, capabilities=CALLS_TOOLS)
    assert caught.value.field == field
    assert caught.value.message.startswith(f"{field}: {message}")


def test_tool_calls_in_an_openai_conversation() -> None:
    called = {
        "role": "assistant",
        "content": None,
        "reasoning": "Hm",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"z": "Rome"}'}},
            {"id": "c2", "type": "function", "function": {"name": "now", "arguments": ""}},
        ],
    }
    answered = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "Sunny"}]}
    prompt = ask_openai({"messages": [USER, called, answered, {"role": "tool", "tool_call_id": "c9", "content": "?"}]})
    assert prompt.messages[1:] == (
        ChatMessage(
            "assistant",
            "",
            reasoning="Hm",
            tool_calls=(ToolCall("c1", "weather", '{"z": "Rome"}'), ToolCall("c2", "now", "{}")),
        ),
        ChatMessage("tool", "Sunny", tool_call_id="c1"),
        ChatMessage("tool", "?", tool_call_id="c9"),
    )
    with pytest.raises(BadRequest, match="invalid message content type: <nil>"):
        ask_openai({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}]})


def test_tool_calls_in_an_ollama_conversation() -> None:
    called = {
        "role": "Assistant",
        "thinking": "Hm",
        "tool_calls": [{"id": "c1", "function": {"index": 0, "name": "weather", "arguments": {"z": "Rome", "a": 1}}}],
    }
    prompt = ask_ollama(
        {
            "messages": [
                USER,
                called,
                {"role": "tool", "tool_call_id": "c1", "content": "Sunny"},
                {"role": "tool", "tool_name": "now", "content": "Noon"},
                {"role": "tool", "name": "now", "content": "Noon"},
            ]
        }
    )
    assert prompt.messages[1:] == (
        ChatMessage("assistant", "", reasoning="Hm", tool_calls=(ToolCall("c1", "weather", '{"z":"Rome","a":1}'),)),
        ChatMessage("tool", "Sunny", tool_call_id="c1"),
        ChatMessage("tool", "Noon", tool_name="now"),
        ChatMessage("tool", "Noon", tool_name="now"),
    )
    with pytest.raises(InvalidField, match=r"messages\[0\].tool_calls\[0\].function.arguments: expected object, got str"):
        ask_ollama({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]})
