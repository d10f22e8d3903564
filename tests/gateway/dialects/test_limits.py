"""Every list and text of a request has a limit, in every dialect, and the limits are documented."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from services.gateway.dialects import ollama, openai, rerank
from services.gateway.dialects.bodies import InvalidField
from services.gateway.dialects.durations import keep_alive_ms
from services.gateway.dialects.limits import (
    BIASES,
    BREAKER_TEXT,
    BREAKERS,
    CALLS,
    CHOICES,
    IMAGES,
    INPUTS,
    LIMITS,
    MESSAGES,
    NAMES,
    NESTING,
    PARTS,
    STOP_TEXT,
    STOPS,
    TOKENS,
    TOOLS,
)
from services.gateway.dialects.ollama.embeddings import EmbedBody, LegacyEmbedBody
from services.gateway.dialects.ollama.requests import NamedBody, PullBody
from services.gateway.dialects.openai.embeddings import EmbeddingsBody
from services.protocol.errors import BadRequest
from tests.gateway.dialects.transcripts import ticket

PAGE = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text()
EVERYTHING = ("completion", "chat", "tools", "thinking", "insert", "embedding", "rerank")


def test_the_page_lists_every_limit() -> None:
    rows = [line for line in PAGE.split("\n## Limits\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    assert rows[2:] == [f"| {limit.of} | {limit.most:,} {limit.unit} | {limit.reason} |" for limit in LIMITS]


#: Fields that hold any JSON, or lists of it. They are checked after decoding; each has a case below.
CHECKED_LATER = {
    *("options", "format", "think", "keep_alive", "tool_choice", "parameters", "arguments", "input", "prompt"),
    *("response_format", "json_schema", "structured_outputs.json", "guided_json", "logit_bias", "chat_template_kwargs"),
}
#: Fields whose contents are ignored: only their presence counts.
UNREAD = {"images", "image_url"}


@pytest.mark.parametrize(
    "body",
    [
        *(ollama.ChatBody, ollama.GenerateBody, openai.ChatBody, openai.CompletionBody, rerank.RerankBody),
        *(EmbeddingsBody, EmbedBody, LegacyEmbedBody, NamedBody, PullBody),
    ],
)
def test_every_text_and_list_of_a_body_has_a_limit(body: type[msgspec.Struct]) -> None:
    assert not {*unbounded(inspect.type_info(body), "")} - CHECKED_LATER - UNREAD


def unbounded(kind: inspect.Type, name: str) -> Iterator[str]:
    match kind:
        case inspect.StructType(fields=fields):
            for field in fields:
                yield from unbounded(field.type, f"{name}.json" if field.name == "json" else field.name)
        case inspect.UnionType(types=types):
            for each in types:
                yield from unbounded(each, name)
        case inspect.ListType(item_type=item, max_length=most):
            yield from [name] if most is None else unbounded(item, name)
        case inspect.StrType(max_length=None) | inspect.DictType() | inspect.AnyType():
            yield name


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


ONE = {"role": "user", "content": "hi"}
CALL = {"function": {"name": "f"}}
TOOL = {"type": "function", "function": {"name": "f"}}
LARGE = {"enum": ["x" * 300_000]}


def chat(changes: dict[str, Any]) -> None:
    openai.chat_request(
        openai.decode_chat(json.dumps({"messages": [ONE], **changes}).encode()), ticket(capabilities=EVERYTHING)
    )


def complete(changes: dict[str, Any]) -> None:
    body = openai.decode_completion(json.dumps({"prompt": "hi", **changes}).encode())
    openai.completion_request(body, ticket(capabilities=EVERYTHING))


def ollama_chat(changes: dict[str, Any]) -> None:
    ollama.chat_request(
        ollama.decode_chat(json.dumps({"messages": [ONE], **changes}).encode()), ticket(capabilities=EVERYTHING)
    )


def generate(changes: dict[str, Any]) -> None:
    body = ollama.decode_generate(json.dumps({"prompt": "hi", **changes}).encode())
    ollama.generate_request(body, ticket(capabilities=EVERYTHING))


def embeddings(changes: dict[str, Any]) -> None:
    openai.embeddings_request(openai.decode_embeddings(json.dumps(changes).encode()), ticket(capabilities=EVERYTHING))


def embed(changes: dict[str, Any]) -> None:
    ollama.embed_request(ollama.decode_embed(json.dumps(changes).encode()), ticket(capabilities=EVERYTHING))


def ranking(changes: dict[str, Any]) -> None:
    rerank.rerank_request(rerank.decode_rerank(json.dumps({"query": "q", **changes}).encode()), ticket(capabilities=EVERYTHING))


Ask = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("ask", "allowed", "refused", "field"),
    [
        *[
            (ask, {"messages": [ONE] * MESSAGES.most}, {"messages": [ONE] * (MESSAGES.most + 1)}, "messages")
            for ask in (chat, ollama_chat)
        ],
        *[(ask, {"tools": [TOOL] * TOOLS.most}, {"tools": [TOOL] * (TOOLS.most + 1)}, "tools") for ask in (chat, ollama_chat)],
        *[(ask, {"stop": ["x"] * STOPS.most}, {"stop": [str(n) for n in range(200_000)]}, "stop") for ask in (chat, complete)],
        *[
            (ask, {"options": {"stop": ["x"] * STOPS.most}}, {"options": {"stop": ["x"] * (STOPS.most + 1)}}, "stop")
            for ask in (ollama_chat, generate)
        ],
        (chat, {"stop": "x" * STOP_TEXT.most}, {"stop": ["x" * STOP_TEXT.most, "y"]}, "stop"),
        (
            chat,
            {"dry_sequence_breakers": ["x"] * BREAKERS.most},
            {"dry_sequence_breakers": [str(n) for n in range(600_000)], "n": 16},
            "dry_sequence_breakers",
        ),
        (
            generate,
            {"options": {"dry_sequence_breakers": ["x" * BREAKER_TEXT.most]}},
            {"options": {"dry_sequence_breakers": ["x" * (BREAKER_TEXT.most + 1)]}},
            "dry_sequence_breakers",
        ),
        (
            chat,
            {"logit_bias": {str(n): 1 for n in range(BIASES.most)}},
            {"logit_bias": [[n, 1] for n in range(BIASES.most + 1)]},
            "logit_bias",
        ),
        (
            chat,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * PARTS.most}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * (PARTS.most + 1)}]},
            "messages[0].content",
        ),
        *[
            (
                ask,
                {"messages": [{**ONE, "tool_calls": [CALL] * CALLS.most}]},
                {"messages": [ONE, {**ONE, "tool_calls": [CALL] * (CALLS.most + 1)}]},
                "messages[1].tool_calls",
            )
            for ask in (chat, ollama_chat)
        ],
        (ollama_chat, {}, {"messages": [{**ONE, "images": ["x"] * (IMAGES.most + 1)}]}, "messages[0].images"),
        (generate, {"context": [1] * 100_000}, {"context": [1] * (TOKENS.most + 1)}, "context"),
        (complete, {"prompt": ["x"]}, {"prompt": ["x" * 5_000_000]}, "prompt"),
        (complete, {"prompt": [1] * 100_000}, {"prompt": [1] * (TOKENS.most + 1)}, "prompt"),
        (chat, {"guided_choice": ["x"]}, {"guided_choice": ["x"] * (CHOICES.most + 1)}, "guided_choice"),
        (chat, {"guided_json": {"enum": ["x" * 200_000]}}, {"guided_json": LARGE}, "guided_json"),
        (chat, {}, {"guided_json": json.dumps(LARGE)}, "guided_json"),
        (chat, {}, {"structured_outputs": {"json": LARGE}}, "structured_outputs.json"),
        (chat, {}, {"json_schema": LARGE}, "json_schema"),
        (chat, {}, {"response_format": {"type": "json_object", "schema": LARGE}}, "response_format.schema"),
        (
            chat,
            {},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": LARGE}}},
            "response_format.json_schema.schema",
        ),
        (ollama_chat, {"format": deep(NESTING.most - 1)}, {"format": deep(NESTING.most)}, "format"),
        (ollama_chat, {}, {"format": [LARGE] * 2}, None),
        (generate, {}, {"think": "x" * 100_000}, None),
        (chat, {}, {"chat_template_kwargs": LARGE}, "chat_template_kwargs"),
        (chat, {}, {"chat_template_kwargs": deep(200)}, "chat_template_kwargs"),
        *[
            (
                ask,
                {"tools": [{"function": {"name": "f", "parameters": {}}}]},
                {"tools": [{"function": {"name": "f", "parameters": LARGE}}]},
                "tools[0].function.parameters",
            )
            for ask in (chat, ollama_chat)
        ],
        *[
            (
                ask,
                {"messages": [{**ONE, "tool_calls": [{"function": {"name": "f", "arguments": {"n": 10**100}}}]}]},
                {"messages": [{**ONE, "tool_calls": [{"function": {"name": "f", "arguments": deep(500)}}]}]},
                "messages[0].tool_calls[0].function.arguments",
            )
            for ask in (chat, ollama_chat)
        ],
        (chat, {}, {"tool_choice": {"type": "function", "function": {"name": "x" * 2_000}}}, "tool_choice.function.name"),
        (chat, {}, {"reasoning_effort": "x" * (NAMES.most + 1)}, "reasoning_effort"),
        *[(ask, {"input": ["x"] * INPUTS.most}, {"input": ["x"] * (INPUTS.most + 1)}, "input") for ask in (embeddings, embed)],
        *[(ask, {"input": "x"}, {"input": ["x" * 5_000_000]}, "input") for ask in (embeddings, embed)],
        (embeddings, {"input": [[1, 2]]}, {"input": [[1] * (TOKENS.most + 1)]}, "input"),
        (ranking, {"documents": ["x"] * INPUTS.most}, {"documents": ["x"] * (INPUTS.most + 1)}, "documents"),
    ],
)
def test_one_item_over_the_limit_is_refused_and_the_error_names_the_field(
    ask: Ask, allowed: dict[str, Any], refused: dict[str, Any], field: str | None
) -> None:
    if allowed:
        ask(allowed)
    with pytest.raises(BadRequest) as caught:
        ask(refused)
    assert len(caught.value.message) < 500
    if field is not None:
        assert caught.value.field == field
        assert caught.value.message.startswith(field)


def test_a_long_keep_alive_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidField, match="^keep_alive: at most 64 characters$"):
        keep_alive_ms("1h" * 1_000_000)


@pytest.mark.parametrize("digits", [30, 100, 4_000])
def test_numbers_of_many_digits_are_clamped_or_refused(digits: int) -> None:
    number: Any = int("9" * digits)
    for changes in ({"seed": number}, {"max_tokens": number}, {"priority": -number}, {"logit_bias": [[1, number]]}):
        chat(changes)
    for options in ({"seed": number}, {"num_predict": -number}, {"temperature": number}, {"num_ctx": number}):
        generate({"options": options})
    embed({"input": "x", "dimensions": number})
    ranking({"documents": ["x"], "top_n": number})
    for changes in ({"n": number}, {"top_logprobs": number}, {"logit_bias": {str(number): 1}}):
        with pytest.raises(BadRequest):
            chat(changes)
    for changes in ({"format": number}, {"think": number}, {"context": [number]}, {"format": {"maximum": number}}):
        with pytest.raises(BadRequest):
            generate(changes)
