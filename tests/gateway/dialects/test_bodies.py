"""Request bodies that every dialect refuses, and bodies that every dialect reads."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.dialects import ollama, openai
from services.gateway.dialects.bodies import InvalidField
from services.gateway.dialects.durations import FOREVER_MS, keep_alive_ms
from services.gateway.dialects.options import run_options
from services.protocol.errors import BadRequest
from services.protocol.wire import encode
from tests.gateway.dialects.transcripts import ticket

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["model", "messages", "stream", "options", "stop", "tools", "format", "keep_alive", "context", "prompt", "n"]
)
DECODERS = (ollama.decode_chat, ollama.decode_generate, ollama.decode_pull, openai.decode_chat, openai.decode_completion)


@pytest.mark.parametrize("raw", [b"", b"  \n"])
def test_a_missing_body_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest, match="^missing request body$"):
        ollama.decode_chat(raw)


@pytest.mark.parametrize(
    "raw", [b"{", b"nonsense", b'{"model":"\\x"}', b'{"model":"\\u12"}', b"[" * 100_000, b"[]", b"null", b'"x"']
)
def test_a_malformed_body_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        ollama.decode_chat(raw)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (rb"\ud83d", "�"),
        (rb"\uDE00!", "�!"),
        (rb"\ud83d\ud83d\ude00", "�😀"),
        (rb"\ude00\ud83d", "��"),
        (rb"\ud83dx\ude00", "�x�"),
        (rb"\\ud83d \ud83d", r"\ud83d �"),
        (rb"\\\ud83d", "\\�"),
        (rb"\ud83d\u0041\n", "�A\n"),
        (b"\xff", "�"),
        (b"a\xf0\x9f\x98", "a�"),
        (b"\xed\xa0\xbd", "���"),
        ("😀é".encode(), "😀é"),
    ],
)
def test_malformed_unicode_is_replaced(written: bytes, text: str) -> None:
    chat = b'{"model": "m", "messages": [{"role": "user", "content": "' + written + b'"}]}'
    for decode in (ollama.decode_chat, openai.decode_chat):
        (message,) = decode(chat).messages or []
        assert message.content == text
    assert ollama.decode_generate(b'{"model": "m", "prompt": "' + written + b'"}').prompt == text
    schema = (
        b'{"model": "m", "format": {"enum": ["'
        + written
        + b'"], "'
        + written
        + b'": 1}, "options": {"stop": ["'
        + written
        + b'"]}}'
    )
    body = ollama.decode_generate(schema)
    assert body.format == {"enum": [text], text: 1}
    assert body.options == {"stop": [text]}
    assert ollama.decode_embed(b'{"model": "m", "input": ["' + written + b'"]}').input == [text]


@given(st.text(st.characters(exclude_categories=()), max_size=8))
def test_escaped_text_is_read_as_pythons_json_reads_it(text: str) -> None:
    """Except for unpaired surrogates, which become replacement characters."""
    whole = json.loads(json.dumps(text)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert ollama.decode_generate(json.dumps({"model": "m", "prompt": text}).encode()).prompt == whole


@given(st.binary(max_size=50) | st.dictionaries(FIELDS, JSON, max_size=4).map(lambda body: json.dumps(body).encode()))
def test_any_body_is_read_or_refused(raw: bytes) -> None:
    for decode in DECODERS:
        with contextlib.suppress(BadRequest):
            decode(raw)


EVERYTHING = ("completion", "chat", "tools", "thinking", "insert")
ASKED = st.sampled_from(
    ["tools", "tool_choice", "think", "format", "response_format", "guided_json", "structured_outputs", "logit_bias", "n"]
    + ["chat_template_kwargs", "logprobs", "top_logprobs", "reasoning", "options", "prompt", "suffix", "min_tokens", "seed"]
)
#: Values that are almost valid for these fields.
NEAR = st.sampled_from(
    [
        [{"type": "function", "function": {"name": "f", "parameters": {"x": 2**64}}}],
        {"type": "json_schema", "json_schema": {"schema": {"maximum": -(2**64)}}},
        {"type": "function", "function": {"name": "f"}},
        {"json": "[1, " + "9" * 30 + "]", "choice": []},
        {"effort": "high"},
        [[1, False], [2**31, 0.5]],
        {"enable_thinking": 2**70},
        [1, 2, 2**31],
        "high",
        2**80,
    ]
)


@given(st.dictionaries(ASKED, JSON | NEAR, max_size=5))
def test_any_request_can_be_encoded_or_is_refused(asked: dict[str, object]) -> None:
    raw = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", **asked}).encode()
    whole = ticket(capabilities=EVERYTHING)
    with contextlib.suppress(BadRequest):
        encode(openai.chat_request(openai.decode_chat(raw), whole))
    with contextlib.suppress(BadRequest):
        encode(openai.completion_request(openai.decode_completion(raw), whole))
    with contextlib.suppress(BadRequest):
        encode(ollama.chat_request(ollama.decode_chat(raw), whole))
    with contextlib.suppress(BadRequest):
        encode(ollama.generate_request(ollama.decode_generate(raw), whole))


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [
        (None, None),
        (0, 0),
        (5, 5000),
        (0.5, 500),
        (1e-9, 1),
        (-1, FOREVER_MS),
        (-0.5, FOREVER_MS),
        ("10m", 600_000),
        ("1h30m", 5_400_000),
        ("300ms", 300),
        ("1.5s", 1500),
        (".5s", 500),
        ("1ns", 1),
        ("0", 0),
        ("0s", 0),
        ("-1m", FOREVER_MS),
        ("+2s", 2000),
        (10**30, (2**63 - 1) // 10**6),
    ],
)
def test_keep_alive_values(value: object, milliseconds: int | None) -> None:
    assert keep_alive_ms(value) == milliseconds


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", 'time: invalid duration ""'),
        ("10", 'time: missing unit in duration "10"'),
        ("10x", 'time: unknown unit "x" in duration "10x"'),
        ("soon", 'time: invalid duration "soon"'),
        (True, "keep_alive: expected a number of seconds or a duration, got bool"),
        ({}, "keep_alive: expected a number of seconds or a duration"),
    ],
)
def test_invalid_keep_alive_values_are_refused(value: object, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        keep_alive_ms(value)
    assert caught.value.message == message


@given(st.text(max_size=12) | st.floats(allow_nan=False) | st.integers())
def test_any_keep_alive_is_read_or_refused(value: object) -> None:
    try:
        milliseconds = keep_alive_ms(value)
    except BadRequest:
        return
    assert milliseconds is not None
    assert FOREVER_MS <= milliseconds < 2**63


OPTION_NAMES = st.sampled_from(
    ["temperature", "top_k", "seed", "num_predict", "stop", "num_ctx", "use_mmap", "mirostat", "logit_bias", "repeat_penalty"]
)


@given(st.dictionaries(OPTION_NAMES, JSON, max_size=4))
def test_any_options_can_be_encoded_or_are_refused(options: dict[str, object]) -> None:
    try:
        chosen = run_options(options)
    except InvalidField:
        return
    encode(chosen)
    assert chosen.sampling.top_k >= 0
    assert chosen.stopping.max_tokens is None or chosen.stopping.max_tokens >= 0
