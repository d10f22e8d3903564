"""Request bodies of Ollama's routes: which are accepted, which are refused, and the error messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from services.gateway.dialects import ollama
from services.protocol.errors import BadRequest, CorralError, UnsupportedCapability
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, TextPrompt
from tests.gateway.dialects.transcripts import ticket

FULL = "registry.ollama.ai/library/smollm2:135m"
USER = {"role": "user", "content": "Hi"}


def chat(changes: dict[str, Any] | None = None, **version: Any) -> GenerateRequest:
    body = {"model": "smollm2:135m", "messages": [USER], **(changes or {})}
    return ollama.chat_request(ollama.decode_chat(json.dumps(body).encode()), ticket(**version))


def generate(changes: dict[str, Any] | None = None, **version: Any) -> GenerateRequest:
    body = {"model": "smollm2:135m", "prompt": "Hi", **(changes or {})}
    return ollama.generate_request(ollama.decode_generate(json.dumps(body).encode()), ticket(**version))


def test_empty_values_count_as_omitted() -> None:
    """Ollama's command line and other clients send them."""
    empty: dict[str, Any] = {
        "format": "",
        "tools": [],
        "options": None,
        "keep_alive": None,
        "think": False,
        "logprobs": None,
        "truncate": None,
        "width": 0,
    }
    assert chat(empty) == chat()
    assert chat({"messages": [USER | {"images": [], "tool_calls": None}]}) == chat()
    empty_generate = {"suffix": "", "system": "", "template": "", "options": None, "context": None, "images": None, "raw": None}
    assert generate(empty_generate) == generate()


def test_the_deprecated_name_field() -> None:
    assert ollama.decode_named(b'{"model":"","name":"llama3.2","username":""}').asked == "llama3.2"
    assert ollama.decode_named(b'{"model":"a","name":"b"}').asked == "a"
    assert ollama.decode_named(b"{}").asked == ""


def test_defaults() -> None:
    sampling = chat().sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.repeat_penalty) == (0.8, 40, 0.9, 1.0)
    assert chat().stopping.max_tokens is None
    assert (chat().overflow, chat({"truncate": False}).overflow) == ("truncate", "refuse")


def test_request_options_override_the_models_parameters() -> None:
    parameters = {"temperature": 0.1, "top_k": 3, "stop": ["<a>", "<b>"], "num_predict": 5}
    request = chat({"options": {"top_k": 7, "stop": "x"}}, parameters=parameters)
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p) == (0.1, 7, 0.9)
    assert (request.stopping.stop, request.stopping.max_tokens) == (("x",), 5)


def test_options_become_sampling_parameters() -> None:
    options = {"mirostat": 1, "num_keep": 24, "logit_bias": {"3": 2}, "dry_multiplier": 1, "min_tokens": 2, "num_predict": -1}
    request = chat({"options": options})
    sampling = request.sampling
    assert (sampling.mirostat, sampling.logit_bias, sampling.dry_multiplier) == (1, ((3, 2.0),), 1.0)
    assert (request.keep_tokens, request.stopping.min_tokens, request.stopping.max_tokens) == (24, 2, None)


def test_shift_and_keep_tokens() -> None:
    assert (chat().shift, chat().keep_tokens) == (True, 4)
    assert not chat({"shift": False}).shift


def test_logprobs() -> None:
    assert chat().top_logprobs is None
    assert chat({"top_logprobs": 3}).top_logprobs is None
    assert chat({"logprobs": True}).top_logprobs == 0
    assert generate({"logprobs": True, "top_logprobs": 20}).top_logprobs == 20


THINKER = ("completion", "chat", "thinking")


@pytest.mark.parametrize("ask", [chat, generate])
@pytest.mark.parametrize(
    ("think", "thinking", "effort"), [(None, True, ""), (True, True, ""), (False, False, ""), ("max", True, "max")]
)
def test_think_becomes_thinking_and_effort(
    ask: Callable[..., GenerateRequest], think: bool | str | None, thinking: bool, effort: str
) -> None:
    prompt = ask({"think": think}, capabilities=THINKER).prompt
    assert isinstance(prompt, ChatPrompt)
    assert (prompt.thinking, prompt.reasoning_effort) == (thinking, effort)


def test_a_final_assistant_message_is_continued() -> None:
    prompt = chat({"messages": [USER, {"role": "assistant", "content": "Well"}]}).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.continue_final


def test_suffix_makes_an_infill_prompt() -> None:
    for raw in (True, False):
        request = generate({"suffix": "after", "raw": raw}, capabilities=("completion", "chat", "insert"))
        assert request.prompt == TextPrompt("Hi", "after")


def test_generate_builds_a_prompt() -> None:
    assert generate().prompt == ChatPrompt((ChatMessage("user", "Hi"),))
    assert generate({"system": "S"}).prompt == ChatPrompt((ChatMessage("system", "S"), ChatMessage("user", "Hi")))
    assert generate(system="V").prompt == ChatPrompt((ChatMessage("system", "V"), ChatMessage("user", "Hi")))
    assert generate({"raw": True}, system="V").prompt == TextPrompt("Hi")
    assert generate({"system": "S "}, capabilities=("completion",)).prompt == TextPrompt("S Hi")
    assert generate({"context": [1, 2]}).context == (1, 2)
    assert generate().return_prompt_ids
    assert not generate({"raw": True}).return_prompt_ids


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tools": [{"type": "function"}]}, BadRequest, "tools[0].function.name: is required"),
        ({"messages": [USER | {"images": ["aGk="]}]}, UnsupportedCapability, f"{FULL} does not support vision"),
        ({"think": True}, UnsupportedCapability, '"smollm2:135m" does not support thinking'),
        ({"think": "high"}, UnsupportedCapability, '"smollm2:135m" does not support thinking'),
        (
            {"think": "often"},
            BadRequest,
            'invalid think value: "often" (must be "high", "medium", "low", "max", true, or false)',
        ),
        ({"format": "xml"}, BadRequest, 'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
        ({"logprobs": True, "top_logprobs": 21}, BadRequest, "top_logprobs must be between 0 and 20"),
        ({"format": {"maximum": 2**70}}, BadRequest, "format: contains an integer of more than 64 bits"),
        ({"options": {"mirostat": 3}}, BadRequest, "mirostat: must be 0, 1 or 2"),
        ({"options": {"temperature": "hot"}}, BadRequest, 'option "temperature" must be of type float32'),
        ({"options": {"num_ctx": "big"}}, BadRequest, 'option "num_ctx" must be of type integer'),
        ({"options": {"use_mmap": 1}}, BadRequest, 'option "use_mmap" must be of type boolean'),
        ({"options": {"stop": [1]}}, BadRequest, 'option "stop" must be of an array of strings'),
    ],
)
def test_invalid_chats_are_refused(changes: dict[str, Any], error: type[CorralError], message: str) -> None:
    with pytest.raises(error) as caught:
        chat(changes)
    assert caught.value.message == message
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suffix": "after"}, f"{FULL} does not support insert"),
        ({"images": ["aGk="]}, f"{FULL} does not support vision"),
        ({"raw": True, "system": "S"}, "raw mode does not support template, system, or context"),
        ({"template": "{{ .Prompt }}"}, "template: not supported in a request; the model's own template is used"),
        ({"context": [-1]}, "context: contains a number that is not a token id"),
        ({"context": [2**40]}, "context: contains a number that is not a token id"),
    ],
)
def test_invalid_generate_requests_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        generate(changes)
    assert caught.value.message == message


def test_a_missing_capability_is_refused() -> None:
    with pytest.raises(UnsupportedCapability, match='^"smollm2:135m" does not support chat$'):
        chat(capabilities=("completion",))
    with pytest.raises(UnsupportedCapability, match='^"smollm2:135m" does not support generate$'):
        generate(capabilities=("embedding",))
