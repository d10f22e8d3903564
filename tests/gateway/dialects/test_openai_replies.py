"""Golden transcripts of OpenAI's streams and bodies."""

from __future__ import annotations

from services.gateway.dialects import openai
from services.protocol.errors import WorkerLost
from tests.gateway.dialects.transcripts import ANSWER, SILENCE, SteppingStopwatch

CHUNK = '{"id":"chatcmpl-r","object":"chat.completion.chunk","created":1787338102,"model":"m","system_fingerprint":"fp_ollama",'
TEXT = '{"id":"cmpl-r","object":"text_completion","created":1787338102,"model":"m","system_fingerprint":"fp_ollama",'
USAGE = '"usage":{"prompt_tokens":5,"completion_tokens":4,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":2}}'
NO_USAGE = '"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0,"prompt_tokens_details":{"cached_tokens":0}}'


def chat_reply(*, stream: bool, include_usage: bool = False) -> openai.ChatReply:
    return openai.ChatReply("m", SteppingStopwatch(), id="r", n=1, stream=stream, include_usage=include_usage)


def completion_reply(*, stream: bool, include_usage: bool = False) -> openai.CompletionReply:
    return openai.CompletionReply("m", SteppingStopwatch(), id="r", n=1, stream=stream, include_usage=include_usage)


def test_chat_stream() -> None:
    reply = chat_reply(stream=True)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        f'data: {CHUNK}"choices":[{{"index":0,"delta":{{"role":"assistant","content":"Hé"}},"finish_reason":null}}]}}\n\n'
        f'data: {CHUNK}"choices":[{{"index":0,"delta":{{"content":"llo\\n"}},"finish_reason":null}}]}}\n\n'
        f'data: {CHUNK}"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}\n\n'
        "data: [DONE]\n\n"
    )


def test_chat_stream_with_usage() -> None:
    reply = chat_reply(stream=True, include_usage=True)
    *_, finish, usage, done, end = b"".join(map(reply.render, ANSWER)).decode().split("\n\n")
    assert finish == f'data: {CHUNK}"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}'
    assert usage == f'data: {CHUNK}"choices":[],{USAGE}}}'
    assert (done, end) == ("data: [DONE]", "")


def test_chat_stream_of_nothing_says_who_speaks() -> None:
    reply = chat_reply(stream=True)
    assert b"".join(map(reply.render, SILENCE)).decode() == (
        f'data: {CHUNK}"choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},"finish_reason":null}}]}}\n\n'
        f'data: {CHUNK}"choices":[{{"index":0,"delta":{{}},"finish_reason":"length"}}]}}\n\n'
        "data: [DONE]\n\n"
    )


def test_chat_whole() -> None:
    reply = chat_reply(stream=False)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        '{"id":"chatcmpl-r","object":"chat.completion","created":1787338102,"model":"m","system_fingerprint":"fp_ollama",'
        '"choices":[{"index":0,"message":{"role":"assistant","content":"Héllo\\n"},"finish_reason":"stop"}],' + USAGE + "}"
    )


def test_completion_stream_with_usage() -> None:
    reply = completion_reply(stream=True, include_usage=True)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        f'data: {TEXT}"choices":[{{"text":"Hé","index":0,"logprobs":null,"finish_reason":null}}],{NO_USAGE}}}\n\n'
        f'data: {TEXT}"choices":[{{"text":"llo\\n","index":0,"logprobs":null,"finish_reason":null}}],{NO_USAGE}}}\n\n'
        f'data: {TEXT}"choices":[{{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}}],{NO_USAGE}}}\n\n'
        f'data: {TEXT}"choices":[],{USAGE}}}\n\n'
        "data: [DONE]\n\n"
    )


def test_completion_whole() -> None:
    reply = completion_reply(stream=False)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        f'{TEXT}"choices":[{{"text":"Héllo\\n","index":0,"logprobs":null,"finish_reason":"stop"}}],{USAGE}}}'
    )


def test_a_stream_that_fails() -> None:
    assert chat_reply(stream=True).render_error(WorkerLost("it broke")) == (
        b'data: {"error":{"message":"it broke","type":"api_error","param":null,"code":"worker_lost"}}\n\n'
    )
