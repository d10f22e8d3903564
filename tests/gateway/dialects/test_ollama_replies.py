"""Golden transcripts of Ollama's streams and bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.dialects import ollama
from services.protocol.errors import ModelLoadFailed, WorkerLost
from services.protocol.messages import Event, Frame, ToolCallDelta
from tests.gateway.dialects.transcripts import ANSWER, CALLS, CUT_CALL, LOGPROBS, SILENCE, SteppingStopwatch


def contents(reply: ollama.ChatReply, events: tuple[Event, ...]) -> list[dict[str, Any]]:
    """The fields of each object that a test of contents compares."""
    lines = [json.loads(line) for line in b"".join(map(reply.render, events)).splitlines()]
    return [{name: line[name] for name in ("message", "response", "thinking", "logprobs") if name in line} for line in lines]


def message(content: str = "", **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **more}}


def test_a_streamed_chat() -> None:
    reply = ollama.ChatReply("m", SteppingStopwatch(), stream=True)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000003Z","message":{"role":"assistant","content":"Hé"},"done":false}\n'
        '{"model":"m","created_at":"2026-08-21T18:48:22.000004Z","message":{"role":"assistant","content":"llo\\n"},"done":false}\n'
        '{"model":"m","created_at":"2026-08-21T18:48:22.000005Z","message":{"role":"assistant","content":""},"done":true,'
        '"done_reason":"stop","total_duration":5000,"load_duration":1000,"prompt_eval_count":5,"prompt_eval_duration":20,'
        '"eval_count":4,"eval_duration":30}\n'
    )


def test_a_chat_that_is_not_streamed() -> None:
    reply = ollama.ChatReply("m", SteppingStopwatch(), stream=False)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000003Z","message":{"role":"assistant","content":"Héllo\\n"},"done":true,'
        '"done_reason":"stop","total_duration":3000,"load_duration":1000,"prompt_eval_count":5,"prompt_eval_duration":20,'
        '"eval_count":4,"eval_duration":30}'
    )


def test_a_streamed_generate() -> None:
    reply = ollama.GenerateReply("m", SteppingStopwatch(), stream=True, return_context=True)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000003Z","response":"Hé","done":false}\n'
        '{"model":"m","created_at":"2026-08-21T18:48:22.000004Z","response":"llo\\n","done":false}\n'
        '{"model":"m","created_at":"2026-08-21T18:48:22.000005Z","response":"","done":true,"done_reason":"stop",'
        '"context":[7,8,9,10,11,12],"total_duration":5000,"load_duration":1000,"prompt_eval_count":5,"prompt_eval_duration":20,'
        '"eval_count":4,"eval_duration":30}\n'
    )


def test_generate_in_raw_mode_returns_no_context() -> None:
    reply = ollama.GenerateReply("m", SteppingStopwatch(), stream=False, return_context=False)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000003Z","response":"Héllo\\n","done":true,"done_reason":"stop",'
        '"total_duration":3000,"load_duration":1000,"prompt_eval_count":5,"prompt_eval_duration":20,'
        '"eval_count":4,"eval_duration":30}'
    )


def test_zero_counts_are_left_out() -> None:
    reply = ollama.ChatReply("m", SteppingStopwatch(), stream=True)
    assert b"".join(map(reply.render, SILENCE)).decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000003Z","message":{"role":"assistant","content":""},"done":true,'
        '"done_reason":"length","total_duration":3000,"load_duration":1000,"prompt_eval_count":5,"prompt_eval_duration":20}\n'
    )


def test_replies_to_load_and_unload() -> None:
    reply = ollama.LoadReply("m", SteppingStopwatch(), ollama.idle_generate)
    assert b"".join(map(reply.render, SILENCE)).decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000002Z","response":"","done":true,"done_reason":"load"}'
    )
    assert ollama.idle_chat("m", SteppingStopwatch(), "unload").decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000002Z","message":{"role":"assistant","content":""},"done":true,'
        '"done_reason":"unload"}'
    )


NOW = {"id": "call_a", "function": {"index": 0, "name": "now", "arguments": {}}}
WEATHER = {"id": "call_b", "function": {"index": 1, "name": "weather", "arguments": {"city": "Rome"}}}


def test_tool_calls() -> None:
    stream = ollama.ChatReply("m", SteppingStopwatch(), stream=True)
    assert contents(stream, CALLS) == [
        message(thinking="Hm"),
        message(thinking="m"),
        message("I "),
        message(tool_calls=[NOW]),
        message(tool_calls=[WEATHER]),
        message(),
    ]
    whole = ollama.ChatReply("m", SteppingStopwatch(), stream=False)
    assert contents(whole, CALLS) == [message("I ", thinking="Hmm", tool_calls=[NOW, WEATHER])]


def test_tool_calls_end_with_the_reason_stop() -> None:
    whole = ollama.ChatReply("m", SteppingStopwatch(), stream=False)
    assert json.loads(b"".join(map(whole.render, CALLS)))["done_reason"] == "stop"


@pytest.mark.parametrize("arguments", ["", '{"ci', '"Rome"', "[1]"])
def test_a_truncated_call_is_returned_as_text(arguments: str) -> None:
    """A call with incomplete arguments could do harm."""
    piece = Frame("r", 1, 6, (14,), "", tool_calls=(ToolCallDelta(1, arguments=arguments),))
    whole = ollama.ChatReply("m", SteppingStopwatch(), stream=False)
    (answer,) = contents(whole, (*CUT_CALL[:-1], piece, CUT_CALL[-1]))
    assert answer == message('I {"name": "weather", "arguments": ' + arguments, thinking="Hmm", tool_calls=[NOW])


@pytest.mark.parametrize("arguments", ["", '{"ci', '"Rome"', "[1]"])
def test_a_truncated_call_is_dropped_if_a_call_was_required(arguments: str) -> None:
    piece = Frame("r", 1, 6, (14,), "", tool_calls=(ToolCallDelta(1, arguments=arguments),))
    whole = ollama.ChatReply("m", SteppingStopwatch(), stream=False, calls_only=True)
    (answer,) = contents(whole, (*CUT_CALL[:-1], piece, CUT_CALL[-1]))
    assert answer == message("I ", thinking="Hmm", tool_calls=[NOW])


def test_a_call_without_arguments() -> None:
    whole = ollama.ChatReply("m", SteppingStopwatch(), stream=False)
    (answer,) = contents(whole, (*CUT_CALL[:-1], CALLS[-1]))
    assert answer["message"]["tool_calls"][1]["function"] == {"index": 1, "name": "weather", "arguments": {}}


def test_generate_returns_thinking() -> None:
    stream = ollama.GenerateReply("m", SteppingStopwatch(), stream=True, return_context=False)
    assert contents(stream, CALLS[:4]) == [
        {"response": "", "thinking": "Hm"},
        {"response": "", "thinking": "m"},
        {"response": "I "},
    ]


def test_logprobs() -> None:
    entries = [
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
    stream = ollama.ChatReply("m", SteppingStopwatch(), stream=True)
    assert contents(stream, LOGPROBS) == [
        message("A") | {"logprobs": entries[:1]},
        message() | {"logprobs": entries[1:2]},
        message("€") | {"logprobs": entries[2:]},
        message(),
    ]
    whole = ollama.GenerateReply("m", SteppingStopwatch(), stream=False, return_context=False)
    assert contents(whole, LOGPROBS) == [{"response": "A€", "logprobs": entries}]


def test_errors_in_a_stream() -> None:
    reply = ollama.ChatReply("m", SteppingStopwatch(), stream=True)
    assert reply.render_error(ModelLoadFailed("it broke")) == b'{"error":"it broke"}\n'
    lost = b"model runner has unexpectedly stopped, this may be due to resource limitations or an internal error"
    assert reply.render_error(WorkerLost("3 workers")) == b'{"error":"' + lost + b'"}\n'
