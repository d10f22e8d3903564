"""Golden transcripts of Ollama's streams and bodies."""

from __future__ import annotations

from services.gateway.dialects import ollama
from services.protocol.errors import WorkerLost
from tests.gateway.dialects.transcripts import ANSWER, SILENCE, SteppingStopwatch


def test_chat_stream() -> None:
    reply = ollama.ChatReply("m", SteppingStopwatch(), stream=True)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000003Z","message":{"role":"assistant","content":"Hé"},"done":false}\n'
        '{"model":"m","created_at":"2026-08-21T18:48:22.000004Z","message":{"role":"assistant","content":"llo\\n"},"done":false}\n'
        '{"model":"m","created_at":"2026-08-21T18:48:22.000005Z","message":{"role":"assistant","content":""},"done":true,'
        '"done_reason":"stop","total_duration":5000,"load_duration":1000,"prompt_eval_count":5,"prompt_eval_duration":20,'
        '"eval_count":4,"eval_duration":30}\n'
    )


def test_chat_whole() -> None:
    reply = ollama.ChatReply("m", SteppingStopwatch(), stream=False)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000003Z","message":{"role":"assistant","content":"Héllo\\n"},"done":true,'
        '"done_reason":"stop","total_duration":3000,"load_duration":1000,"prompt_eval_count":5,"prompt_eval_duration":20,'
        '"eval_count":4,"eval_duration":30}'
    )


def test_generate_stream() -> None:
    reply = ollama.GenerateReply("m", SteppingStopwatch(), stream=True, return_context=True)
    assert b"".join(map(reply.render, ANSWER)).decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000003Z","response":"Hé","done":false}\n'
        '{"model":"m","created_at":"2026-08-21T18:48:22.000004Z","response":"llo\\n","done":false}\n'
        '{"model":"m","created_at":"2026-08-21T18:48:22.000005Z","response":"","done":true,"done_reason":"stop",'
        '"context":[7,8,9,10,11,12],"total_duration":5000,"load_duration":1000,"prompt_eval_count":5,"prompt_eval_duration":20,'
        '"eval_count":4,"eval_duration":30}\n'
    )


def test_generate_whole_in_raw_mode_has_no_context() -> None:
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


def test_load() -> None:
    reply = ollama.LoadReply("m", SteppingStopwatch(), ollama.idle_generate)
    assert b"".join(map(reply.render, SILENCE)).decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000002Z","response":"","done":true,"done_reason":"load"}'
    )
    assert ollama.idle_chat("m", SteppingStopwatch(), "unload").decode() == (
        '{"model":"m","created_at":"2026-08-21T18:48:22.000002Z","message":{"role":"assistant","content":""},"done":true,'
        '"done_reason":"unload"}'
    )


def test_a_stream_that_fails() -> None:
    reply = ollama.ChatReply("m", SteppingStopwatch(), stream=True)
    assert reply.render_error(WorkerLost("it broke")) == b'{"error":"it broke"}\n'
