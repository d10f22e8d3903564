"""Request bodies of OpenAI's routes: which are accepted, which are refused, and the error messages."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from services.gateway.dialects import openai
from services.gateway.dialects.bodies import InvalidField
from services.protocol.errors import BadRequest, UnsupportedCapability
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import ChatMessage, ChatPrompt, TextPrompt, ToolCall
from services.protocol.sampling import SamplingParams, StopConditions
from tests.gateway.dialects.transcripts import ticket

FULL = "registry.ollama.ai/library/smollm2:135m"
USER = {"role": "user", "content": "Hi"}


def chat(changes: dict[str, Any] | None = None, **version: Any) -> GenerateRequest:
    body = {"model": "smollm2:135m", "messages": [USER], **(changes or {})}
    return openai.chat_request(openai.decode_chat(json.dumps(body).encode()), ticket(**version))


def prompt_of(changes: dict[str, Any]) -> ChatPrompt:
    prompt = chat(changes).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt


def complete(changes: dict[str, Any] | None = None, **version: Any) -> GenerateRequest:
    body = {"model": "smollm2:135m", "prompt": "Hi", **(changes or {})}
    return openai.completion_request(openai.decode_completion(json.dumps(body).encode()), ticket(**version))


def test_empty_values_count_as_omitted() -> None:
    empty = {
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "logit_bias": {},
        "top_logprobs": 0,
        "chat_template_kwargs": {},
        "guided_json": None,
        "grammar": "",
        "n": 1,
        "logprobs": False,
        "response_format": {"type": "text"},
        "stop": None,
        "stream_options": None,
        "user": "me",
        "modalities": ["text"],
        "reasoning_effort": "none",
        "reasoning": {"effort": None},
    }
    assert chat(empty) == chat()
    assert complete({"suffix": "", "logprobs": None, "echo": False, "best_of": 1}) == complete()


def test_sampling_parameters() -> None:
    request = chat(
        {"temperature": 0, "top_p": 0.5, "top_k": 3, "typical_p": 0.7, "repeat_penalty": 1.2, "seed": 5, "stop": ["a"]}
    )
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.typical_p) == (0.0, 0.5, 3, 0.7)
    assert (sampling.repeat_penalty, sampling.seed, request.stopping.stop) == (1.2, 5, ("a",))
    assert (chat().sampling.temperature, chat().sampling.top_p) == (1.0, 1.0)
    assert chat(parameters={"temperature": 0.3}).sampling.temperature == 0.3


def test_every_option_of_the_sampler() -> None:
    request = chat(
        {
            "min_p": 0.1,
            "repetition_penalty": 1.3,
            "repeat_last_n": -1,
            "frequency_penalty": 0.5,
            "presence_penalty": -0.5,
            "dry_multiplier": 0.8,
            "dry_base": 2,
            "dry_allowed_length": 3,
            "dry_penalty_last_n": 128,
            "dry_sequence_breakers": ["\n"],
            "xtc_probability": 0.5,
            "xtc_threshold": 0.2,
            "mirostat": 2,
            "mirostat_tau": 4,
            "mirostat_eta": 0.2,
            "logit_bias": {"5": -100, "7": 1.5},
            "min_tokens": 3,
            "ignore_eos": True,
        }
    )
    assert request.sampling == SamplingParams(
        top_k=40,
        min_p=0.1,
        repeat_penalty=1.3,
        repeat_last_n=-1,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        dry_multiplier=0.8,
        dry_base=2.0,
        dry_allowed_length=3,
        dry_penalty_last_n=128,
        dry_sequence_breakers=("\n",),
        xtc_probability=0.5,
        xtc_threshold=0.2,
        mirostat=2,
        mirostat_tau=4.0,
        mirostat_eta=0.2,
        logit_bias=((5, -100.0), (7, 1.5)),
    )
    assert request.stopping == StopConditions(min_tokens=3, ignore_eos=True)
    assert chat({"logit_bias": [[5, False], ["6", -1]]}).sampling.logit_bias == ((5, -math.inf), (6, -1.0))


def test_choices_and_logprobs() -> None:
    assert (chat().n, chat({"n": 128}).n, complete({"n": 2, "best_of": 2}).n) == (1, 128, 2)
    assert chat().top_logprobs is None
    assert chat({"logprobs": True}).top_logprobs == 0
    assert chat({"logprobs": True, "top_logprobs": 20}).top_logprobs == 20
    assert complete().top_logprobs is None
    assert (complete({"logprobs": 0}).top_logprobs, complete({"logprobs": 5}).top_logprobs) == (0, 5)


THINKER = ("completion", "chat", "thinking")


@pytest.mark.parametrize(
    ("changes", "thinking", "effort"),
    [
        ({}, True, ""),
        ({"reasoning_effort": "none"}, False, ""),
        ({"reasoning_effort": "minimal"}, True, "low"),
        ({"reasoning_effort": "medium"}, True, "medium"),
        ({"reasoning": {"effort": "xhigh"}}, True, "max"),
        ({"chat_template_kwargs": {"enable_thinking": False, "x": 1}}, False, ""),
        ({"chat_template_kwargs": {"reasoning_effort": "high"}}, True, "high"),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, True, "high"),
    ],
)
def test_reasoning_becomes_thinking_and_effort(changes: dict[str, Any], thinking: bool, effort: str) -> None:
    prompt = chat(changes, capabilities=THINKER).prompt
    assert isinstance(prompt, ChatPrompt)
    assert (prompt.thinking, prompt.reasoning_effort) == (thinking, effort)
    assert prompt.template_kwargs == changes.get("chat_template_kwargs", {})


def test_a_final_assistant_message_is_continued() -> None:
    partial = {"messages": [USER, {"role": "assistant", "content": "Well"}]}
    called = {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f"}}]}]}

    def continues(changes: dict[str, Any]) -> bool:
        prompt = chat(changes).prompt
        assert isinstance(prompt, ChatPrompt)
        return prompt.continue_final

    assert continues(partial)
    assert continues(partial | {"continue_final_message": True})
    assert not continues(partial | {"continue_final_message": False})
    assert not continues(called)
    assert not continues({})


def test_max_tokens() -> None:
    assert chat().stopping.max_tokens is None
    assert chat({"max_tokens": 5}).stopping.max_tokens == 5
    assert chat({"max_tokens": 5, "max_completion_tokens": 6}).stopping.max_tokens == 6
    assert complete({"max_tokens": -1}).stopping.max_tokens is None


def test_message_contents() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat({"messages": [{"role": "user", "content": parts}]}).prompt == ChatPrompt((ChatMessage("user", "a\n\nb"),))
    developer = [{"role": "developer", "content": "Be brief"}, USER]
    assert chat({"messages": developer}).prompt == ChatPrompt((ChatMessage("developer", "Be brief"), ChatMessage("user", "Hi")))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": None, "refusal": "No."}, ChatMessage("assistant", "No.")),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, ChatMessage("assistant", "No.")),
        ({"content": [{"type": "output_text", "text": "Yes."}]}, ChatMessage("assistant", "Yes.")),
        ({"content": "Yes.", "refusal": None, "audio": None, "annotations": []}, ChatMessage("assistant", "Yes.")),
        ({"content": None, "reasoning_content": "Hm"}, ChatMessage("assistant", "", reasoning="Hm")),
        (
            {"content": None, "function_call": {"name": "f", "arguments": '{"a":1}'}},
            ChatMessage("assistant", "", tool_calls=(ToolCall("", "f", '{"a":1}'),)),
        ),
    ],
)
def test_any_answer_can_be_sent_back_as_history(message: dict[str, Any], expected: ChatMessage) -> None:
    assert prompt_of({"messages": [USER, {"role": "assistant", **message}, USER]}).messages[1] == expected


def test_a_function_message_becomes_a_tool_message() -> None:
    result = {"role": "function", "name": "f", "content": "42"}
    assert prompt_of({"messages": [USER, result]}).messages[1] == ChatMessage("tool", "42", tool_name="f")


def test_completion_prompts() -> None:
    assert complete().prompt == TextPrompt("Hi")
    assert complete({"prompt": ["Hi"]}).prompt == TextPrompt("Hi")
    assert complete({"prompt": None}).stopping.max_tokens == 0
    for prompt in ([5, 6], [[5, 6]]):
        request = complete({"prompt": prompt})
        assert (request.prompt, request.context, request.stopping.max_tokens) == (TextPrompt(""), (5, 6), None)


@pytest.mark.parametrize(
    ("changes", "message", "field"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function.name: is required", "tools[0].function.name"),
        ({"n": 0}, "n: must be between 1 and 128", "n"),
        ({"n": 129}, "n: must be between 1 and 128", "n"),
        ({"best_of": 2}, "best_of: must be equal to n, because every choice is returned", "best_of"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be between 0 and 20", "top_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs: needs logprobs to be true", "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias: expected token ids and numbers", "logit_bias"),
        ({"logit_bias": 5}, "logit_bias: expected a map of token ids to numbers", "logit_bias"),
        ({"mirostat": 3}, "mirostat: must be 0, 1 or 2", "mirostat"),
        ({"repeat_penalty": 0}, "repeat_penalty: must be greater than 0", "repeat_penalty"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens: must not be greater than max_tokens", "min_tokens"),
        ({"ignore_eos": "yes"}, "ignore_eos: expected bool, got str", "ignore_eos"),
        (
            {"continue_final_message": True},
            "continue_final_message: the last message must be an assistant message without tool calls",
            "continue_final_message",
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": "yes"}},
            "chat_template_kwargs.enable_thinking: expected bool",
            "chat_template_kwargs.enable_thinking",
        ),
        (
            {"chat_template_kwargs": {"big": 2**70}},
            "chat_template_kwargs: contains an integer of more than 64 bits",
            "chat_template_kwargs",
        ),
        ({"reasoning_effort": "high"}, '"smollm2:135m" does not support thinking', None),
        (
            {"reasoning": {"effort": "often"}},
            'invalid reasoning value: \'often\' (must be "high", "medium", "low", "max", or "none")',
            "reasoning.effort",
        ),
        ({"messages": [{"role": "user"}]}, "invalid message content type: <nil>", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "invalid message format",
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]},
            "image URLs are not currently supported, please use base64 encoded data instead",
            "messages[0].content[0].image_url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,aGk="}]}]},
            f"{FULL} does not support vision",
            "messages[0].content[0]",
        ),
        ({"temperature": "hot"}, "temperature: expected float, got str", "temperature"),
        (
            {"messages": [USER, {"role": "user", "content": 5}]},
            "messages[1].content: expected str | array, got int",
            "messages[1].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}]},
            f"{FULL} does not support audio",
            "messages[0].content[1]",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "function_call": {"arguments": "{}"}}]},
            "messages[1].function_call.name: is required",
            "messages[1].function_call.name",
        ),
        ({"modalities": ["text", "audio"]}, "modalities: answers are text; 'audio' is not supported", "modalities"),
        ({"max_tokens": True}, "max_tokens: expected int, got bool", "max_tokens"),
    ],
)
def test_invalid_chats_are_refused(changes: dict[str, Any], message: str, field: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(changes)
    assert caught.value.message == message
    assert (caught.value.field or None) == field


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ["a", "b"]}, "prompt: must be one text or its token ids; send one request for each prompt"),
        ({"prompt": [1, -2]}, "prompt: contains a number that is not a token id"),
        ({"prompt": [1, 10**100]}, "prompt: contains a number that is not a token id"),
        ({"prompt": [True]}, "prompt: expected token ids"),
        ({"prompt": [1, "a"]}, "prompt: expected token ids"),
        ({"prompt": [[1], [2]]}, "prompt: must be one text or its token ids; send one request for each prompt"),
        ({"n": 200}, "n: must be between 1 and 128"),
        ({"logprobs": 21}, "logprobs must be between 0 and 20"),
        ({"echo": True, "prompt": [1, 2]}, "echo: needs a text prompt, and cannot be combined with logprobs"),
        ({"echo": True, "logprobs": 1}, "echo: needs a text prompt, and cannot be combined with logprobs"),
    ],
)
def test_invalid_completions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidField) as caught:
        complete(changes)
    assert caught.value.message == message
    assert caught.value.field == next(iter(changes))


def test_suffix_makes_an_infill_prompt() -> None:
    with pytest.raises(UnsupportedCapability, match=f"{FULL} does not support insert"):
        complete({"suffix": "after"})
    request = complete({"suffix": "after"}, capabilities=("completion", "insert"))
    assert request.prompt == TextPrompt("Hi", "after")


def test_chat_needs_a_template() -> None:
    with pytest.raises(UnsupportedCapability, match='^"smollm2:135m" does not support chat$'):
        chat(capabilities=("completion",))
