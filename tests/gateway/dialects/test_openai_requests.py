"""Bodies of OpenAI's routes: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.dialects import openai
from services.gateway.dialects.bodies import InvalidField
from services.protocol.errors import BadRequest, UnsupportedCapability
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, TextPrompt
from tests.gateway.dialects.transcripts import ticket

FULL = "registry.ollama.ai/library/smollm2:135m"
USER = {"role": "user", "content": "Hi"}


def chat(changes: dict[str, Any] | None = None, **version: Any) -> GenerateRequest:
    body = {"model": "smollm2:135m", "messages": [USER], **(changes or {})}
    return openai.chat_request(openai.decode_chat(json.dumps(body).encode()), ticket(**version))


def complete(changes: dict[str, Any] | None = None, **version: Any) -> GenerateRequest:
    body = {"model": "smollm2:135m", "prompt": "Hi", **(changes or {})}
    return openai.completion_request(openai.decode_completion(json.dumps(body).encode()), ticket(**version))


def test_empty_values_mean_nothing() -> None:
    empty = {
        "tools": [],
        "tool_choice": "auto",
        "n": 1,
        "logprobs": False,
        "response_format": {"type": "text"},
        "stop": None,
        "stream_options": None,
        "user": "me",
        "reasoning_effort": "none",
        "reasoning": {"effort": None},
    }
    assert chat(empty) == chat()
    assert complete({"suffix": "", "logprobs": 0, "echo": False, "best_of": 1}) == complete()


def test_sampling() -> None:
    request = chat(
        {"temperature": 0, "top_p": 0.5, "top_k": 3, "typical_p": 0.7, "repeat_penalty": 1.2, "seed": 5, "stop": ["a"]}
    )
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.typical_p) == (0.0, 0.5, 3, 0.7)
    assert (sampling.repeat_penalty, sampling.seed, request.stopping.stop) == (1.2, 5, ("a",))
    assert (chat().sampling.temperature, chat().sampling.top_p) == (1.0, 1.0)
    assert chat(parameters={"temperature": 0.3}).sampling.temperature == 0.3


def test_limits() -> None:
    assert chat().stopping.max_tokens is None
    assert chat({"max_tokens": 5}).stopping.max_tokens == 5
    assert chat({"max_tokens": 5, "max_completion_tokens": 6}).stopping.max_tokens == 6
    assert complete({"max_tokens": -1}).stopping.max_tokens is None


def test_contents() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat({"messages": [{"role": "user", "content": parts}]}).prompt == ChatPrompt((ChatMessage("user", "a\n\nb"),))
    developer = [{"role": "developer", "content": "Be brief"}, USER]
    assert chat({"messages": developer}).prompt == ChatPrompt((ChatMessage("developer", "Be brief"), ChatMessage("user", "Hi")))


def test_completion_prompts() -> None:
    assert complete().prompt == TextPrompt("Hi")
    assert complete({"prompt": ["Hi"]}).prompt == TextPrompt("Hi")
    assert complete({"prompt": None}).stopping.max_tokens == 0


@pytest.mark.parametrize(
    ("changes", "message", "field"),
    [
        ({"tools": [{"type": "function"}]}, f"{FULL} does not support tools", None),
        ({"n": 2}, "n: not supported by this server yet", "n"),
        ({"logprobs": True}, "logprobs: not supported by this server yet", "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format: not supported by this server yet", "response_format"),
        ({"reasoning_effort": "high"}, '"smollm2:135m" does not support thinking', None),
        (
            {"reasoning": {"effort": "often"}},
            'invalid reasoning value: \'often\' (must be "high", "medium", "low", "max", or "none")',
            "reasoning_effort",
        ),
        ({"messages": [{"role": "user"}]}, "invalid message content type: <nil>", None),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "invalid message format", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]},
            "image URLs are not currently supported, please use base64 encoded data instead",
            None,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,aGk="}]}]},
            f"{FULL} does not support vision",
            None,
        ),
        ({"temperature": "hot"}, "temperature: expected float, got str", "temperature"),
        (
            {"messages": [USER, {"role": "user", "content": 5}]},
            "messages[1].content: expected str | array, got int",
            "messages[1].content",
        ),
        ({"max_tokens": True}, "max_tokens: expected int, got bool", "max_tokens"),
    ],
)
def test_chat_refusals(changes: dict[str, Any], message: str, field: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(changes)
    assert caught.value.message == message
    assert (caught.value.field if isinstance(caught.value, InvalidField) else None) == field


def test_completion_refusals() -> None:
    with pytest.raises(UnsupportedCapability, match=f"{FULL} does not support insert"):
        complete({"suffix": "after"})
    for changes in ({"prompt": ["a", "b"]}, {"prompt": [1, 2]}, {"n": 3}, {"logprobs": 5}):
        with pytest.raises(InvalidField) as caught:
            complete(changes)
        assert caught.value.field == next(iter(changes))


def test_chat_needs_a_template() -> None:
    with pytest.raises(UnsupportedCapability, match='^"smollm2:135m" does not support chat$'):
        chat(capabilities=("completion",))
