"""Golden transcripts of OpenAI's streams and bodies."""

from __future__ import annotations

import json
from typing import Any

from services.gateway.dialects import openai
from services.protocol.errors import ModelLoadFailed
from services.protocol.messages import Event
from tests.gateway.dialects.transcripts import ANSWER, CALLS, CHOICES, LOGPROBS, SILENCE, SteppingStopwatch

CHUNK = '{"id":"chatcmpl-r","object":"chat.completion.chunk","created":1787338102,"model":"m","system_fingerprint":"fp_ollama",'
TEXT = '{"id":"cmpl-r","object":"text_completion","created":1787338102,"model":"m","system_fingerprint":"fp_ollama",'
USAGE = '"usage":{"prompt_tokens":5,"completion_tokens":4,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":2}}'
NO_USAGE = '"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0,"prompt_tokens_details":{"cached_tokens":0}}'


def chat_reply(*, stream: bool, include_usage: bool = False, n: int = 1) -> openai.ChatReply:
    return openai.ChatReply("m", SteppingStopwatch(), id="r", n=n, stream=stream, include_usage=include_usage)


def completion_reply(*, stream: bool, include_usage: bool = False, n: int = 1, echo: str = "") -> openai.CompletionReply:
    return openai.CompletionReply("m", SteppingStopwatch(), id="r", n=n, stream=stream, include_usage=include_usage, echo=echo)


def streamed(reply: openai.ChatReply | openai.CompletionReply, events: tuple[Event, ...]) -> list[Any]:
    """The choices of each chunk, or the chunk's usage."""
    *lines, done, end = b"".join(map(reply.render, events)).decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    return [chunk["choices"][0] if chunk["choices"] else chunk["usage"] for chunk in chunks]


def whole(reply: openai.ChatReply | openai.CompletionReply, events: tuple[Event, ...]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(b"".join(map(reply.render, events)))
    return body


def test_a_streamed_chat() -> None:
    reply = chat_reply(stream=True)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        f'data: {CHUNK}"choices":[{{"index":0,"delta":{{"role":"assistant","content":"Hé"}},"finish_reason":null}}]}}\n\n'
        f'data: {CHUNK}"choices":[{{"index":0,"delta":{{"content":"llo\\n"}},"finish_reason":null}}]}}\n\n'
        f'data: {CHUNK}"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}\n\n'
        "data: [DONE]\n\n"
    )


def test_a_streamed_chat_with_usage() -> None:
    reply = chat_reply(stream=True, include_usage=True)
    *texts, finish, usage, done, end = b"".join(map(reply.render, ANSWER)).decode().split("\n\n")
    assert len(texts) == 2
    assert all(text.endswith(',"usage":null}') for text in texts)
    assert finish == f'data: {CHUNK}"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}],"usage":null}}'
    assert usage == f'data: {CHUNK}"choices":[],{USAGE}}}'
    assert (done, end) == ("data: [DONE]", "")


def test_an_empty_chat_stream_has_the_role() -> None:
    reply = chat_reply(stream=True)
    assert b"".join(map(reply.render, SILENCE)).decode() == (
        f'data: {CHUNK}"choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},"finish_reason":null}}]}}\n\n'
        f'data: {CHUNK}"choices":[{{"index":0,"delta":{{}},"finish_reason":"length"}}]}}\n\n'
        "data: [DONE]\n\n"
    )


def test_a_chat_that_is_not_streamed() -> None:
    reply = chat_reply(stream=False)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        '{"id":"chatcmpl-r","object":"chat.completion","created":1787338102,"model":"m","system_fingerprint":"fp_ollama",'
        '"choices":[{"index":0,"message":{"role":"assistant","content":"Héllo\\n"},"finish_reason":"stop"}],' + USAGE + "}"
    )


def test_a_streamed_completion_with_usage() -> None:
    reply = completion_reply(stream=True, include_usage=True)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        f'data: {TEXT}"choices":[{{"text":"Hé","index":0,"logprobs":null,"finish_reason":null}}],{NO_USAGE}}}\n\n'
        f'data: {TEXT}"choices":[{{"text":"llo\\n","index":0,"logprobs":null,"finish_reason":null}}],{NO_USAGE}}}\n\n'
        f'data: {TEXT}"choices":[{{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}}],{NO_USAGE}}}\n\n'
        f'data: {TEXT}"choices":[],{USAGE}}}\n\n'
        "data: [DONE]\n\n"
    )


def test_a_completion_that_is_not_streamed() -> None:
    reply = completion_reply(stream=False)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        f'{TEXT}"choices":[{{"text":"Héllo\\n","index":0,"logprobs":null,"finish_reason":"stop"}}],{USAGE}}}'
    )


def test_tool_calls_in_a_stream() -> None:
    deltas = [choice["delta"] for choice in streamed(chat_reply(stream=True), CALLS)[:-1]]
    assert deltas == [
        {"role": "assistant", "reasoning": "Hm"},
        {"reasoning": "m"},
        {"content": "I "},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}", "name": "now"}, "id": "call_a", "type": "function"}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "", "name": "weather"}, "id": "call_b", "type": "function"}]},
        {
            "tool_calls": [
                {"index": 1, "function": {"arguments": '{"city":'}},
                {"index": 1, "function": {"arguments": '"Rome"}'}},
            ]
        },
    ]
    assert streamed(chat_reply(stream=True), CALLS)[-1] == {"index": 0, "delta": {}, "finish_reason": "tool_calls"}


def test_tool_calls_without_a_stream() -> None:
    body = whole(chat_reply(stream=False), CALLS)
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "I ",
                "reasoning": "Hmm",
                "tool_calls": [
                    {"id": "call_a", "type": "function", "function": {"name": "now", "arguments": "{}"}},
                    {"id": "call_b", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}},
                ],
            },
            "finish_reason": "tool_calls",
        }
    ]
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    silent = whole(chat_reply(stream=False), (CALLS[0], *CALLS[4:]))
    assert silent["choices"][0]["message"]["content"] is None
    assert "completion_tokens_details" not in silent["usage"]


ENTRIES = [
    {
        "token": "A",
        "logprob": -0.5,
        "bytes": [65],
        "top_logprobs": [
            {"token": "A", "logprob": -0.5, "bytes": [65]},
            {"token": "B", "logprob": -1.5, "bytes": [66]},
        ],
    },
    {"token": "�", "logprob": -9999.0, "bytes": [0xE2, 0x82], "top_logprobs": []},
    {"token": "�", "logprob": -0.25, "bytes": [0xAC], "top_logprobs": []},
]


def test_logprobs_of_chats() -> None:
    (choice,) = whole(chat_reply(stream=False), LOGPROBS)["choices"]
    assert choice["logprobs"] == {"content": ENTRIES, "refusal": None}
    *parts, last = streamed(chat_reply(stream=True), LOGPROBS)
    assert [part["logprobs"]["content"] for part in parts] == [[entry] for entry in ENTRIES]
    assert [part["delta"]["content"] for part in parts] == ["A", "", "€"]
    assert "logprobs" not in last


def test_logprobs_of_completions() -> None:
    (choice,) = whole(completion_reply(stream=False), LOGPROBS)["choices"]
    assert choice["logprobs"] == {
        "tokens": ["A", "bytes:\\xe2\\x82", "bytes:\\xac"],
        "token_logprobs": [-0.5, -9999.0, -0.25],
        "top_logprobs": [{"A": -0.5, "B": -1.5}, {"bytes:\\xe2\\x82": -9999.0}, {"bytes:\\xac": -0.25}],
        "text_offset": [0, 1, 1],
    }
    *parts, _ = streamed(completion_reply(stream=True), LOGPROBS)
    assert [part["logprobs"]["text_offset"] for part in parts] == [[0], [1], [1]]
    assert [part["text"] for part in parts] == ["A", "", "€"]


def test_several_choices() -> None:
    first, second = whole(chat_reply(stream=False, n=2), CHOICES)["choices"]
    assert (first["index"], first["message"]["content"], first["finish_reason"]) == (0, "a", "stop")
    assert (second["index"], second["message"]["content"], second["finish_reason"]) == (1, "bB", "length")
    deltas = [
        (choice["index"], choice["delta"], choice["finish_reason"])
        for choice in streamed(chat_reply(stream=True, n=2), CHOICES)
    ]
    assert deltas == [
        (0, {"role": "assistant", "content": ""}, None),
        (1, {"role": "assistant", "content": ""}, None),
        (1, {"content": "b"}, None),
        (0, {"content": "a"}, None),
        (1, {"content": "B"}, None),
        (0, {}, "stop"),
        (1, {}, "length"),
    ]


def test_echo_repeats_the_prompt_at_the_start_of_each_text() -> None:
    texts = [choice["text"] for choice in whole(completion_reply(stream=False, n=2, echo="> "), CHOICES)["choices"]]
    assert texts == ["> a", "> bB"]
    parts = streamed(completion_reply(stream=True, n=2, echo="> "), CHOICES)
    assert [(part["index"], part["text"]) for part in parts] == [(1, "> b"), (0, "> a"), (1, "B"), (0, ""), (1, "")]
    (silent,) = whole(completion_reply(stream=False, echo="> "), SILENCE)["choices"]
    assert silent["text"] == "> "


def test_errors_in_a_stream() -> None:
    assert chat_reply(stream=True).render_error(ModelLoadFailed("it broke")) == (
        b'data: {"error":{"message":"it broke","type":"api_error","param":null,"code":"model_load_failed"}}\n\n'
    )
