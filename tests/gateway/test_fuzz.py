"""Every body is answered or clearly refused within seconds, and other callers are served meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.gateway.app import create_app
from services.protocol.connection import connect
from services.protocol.queue import Queue
from services.protocol.reports import WorkerState
from services.protocol.routes import Routes, TagRoute
from tests.conditions import eventually
from tests.doubles.registry import StandInRegistry
from tests.gateway.conftest import ADMIN_KEY, CHAT, ready, routes_snapshot, settings_for, version_route
from tests.gateway.servers import serving

EMBED, RANK = "e" * 64, "d" * 64
LONGEST_ANSWER_S = 10
NAMES = {"m": CHAT, "embedder": EMBED, "ranker": RANK}

EXTREMES = st.sampled_from(
    [
        *(10**100, -(10**100), 2**63, -(2**63) - 1, 1e308, -1e308, 5e-324, 0, -1, int("9" * 4000)),
        *(float("nan"), float("inf"), float("-inf")),
        *(
            "",
            "\0",
            "\ud83d",
            "a\ud83d\udc00b\udc00",
            "\ufdd0\ufdd1",
            "x" * 50_000,
            "<|im_end|>",
            "«a»",
            "json",
            "auto",
            "required",
        ),
        *([], {}, [None], [{}], [[]], [1] * 20_000, ["x"] * 20_000, [{}] * 20_000, {str(n): n for n in range(20_000)}),
        *(json.loads("[" * 90 + "]" * 90), json.loads('{"a":' * 400 + "1" + "}" * 400)),
        {"type": "json_schema", "json_schema": {"schema": {"type": "object", "required": None}}},
        {"type": "object", "properties": {str(n): {} for n in range(9_000)}},
        {"oneOf": [{"type": "object", "properties": {"k": {"const": n}}, "required": ["k"]} for n in range(2_000)]},
        {"type": "function", "function": {"name": "f"}},
        [{"type": "function", "function": {"name": "f", "parameters": {"properties": None, "maximum": 10**100}}}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"n": 10**100}}}]}],
        [{"role": "tool", "content": "x", "tool_call_id": "\0"}, {"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "\ud83d"}, {"type": "image_url", "image_url": "x"}]}],
        {"enable_thinking": True, "reasoning_effort": "high", "x": [1, {"y": None}]},
        {"stop": ["x"] * 300, "seed": 10**100},
        {"dry_multiplier": 1.0, "dry_sequence_breakers": ["a" * 50] * 50, "repeat_last_n": -1},
        {"logit_bias": [[1, False], [2, 1e308]], "mirostat": 2, "temperature": 1e30},
        *("1h" * 5_000, "9" * 400 + "h", "-1", "5m"),
    ]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | EXTREMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)

#: llguidance's compile time grows with the square of the number of properties.
COSTLY = {"type": "object", "properties": {str(n): True for n in range(6_900)}}

GENERATION = {"model": "m", "stream": False}
TURN = {"role": "user", "content": "hi"}
OPTIONS = {"num_predict": 3}
#: A request that each route answers, and the fields to fuzz.
ROUTES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "/v1/chat/completions": (
        {**GENERATION, "messages": [TURN], "max_tokens": 3},
        [
            "messages",
            "tools",
            "tool_choice",
            "stop",
            "n",
            "logit_bias",
            "response_format",
            "guided_json",
            "guided_choice",
            "seed",
        ]
        + [
            "guided_grammar",
            "dry_sequence_breakers",
            "dry_multiplier",
            "top_logprobs",
            "logprobs",
            "temperature",
            "stream_options",
        ]
        + [
            "chat_template_kwargs",
            "reasoning_effort",
            "keep_alive",
            "priority",
            "min_tokens",
            "modalities",
            "model",
            "stream",
            "top_k",
        ],
    ),
    "/v1/completions": (
        {**GENERATION, "prompt": "hi", "max_tokens": 3},
        [
            "prompt",
            "suffix",
            "echo",
            "logprobs",
            "stop",
            "n",
            "best_of",
            "seed",
            "grammar",
            "guided_regex",
            "logit_bias",
            "top_p",
        ],
    ),
    "/api/chat": (
        {**GENERATION, "messages": [TURN], "options": OPTIONS},
        [
            "messages",
            "tools",
            "format",
            "think",
            "keep_alive",
            "top_logprobs",
            "logprobs",
            "truncate",
            "model",
            "stream",
            "tool_choice",
        ],
    ),
    "/api/generate": (
        {**GENERATION, "prompt": "hi", "options": OPTIONS},
        ["prompt", "suffix", "system", "template", "context", "raw", "images", "format", "think", "keep_alive", "logprobs"],
    ),
    "/v1/embeddings": (
        {"model": "embedder", "input": "hi"},
        ["model", "input", "dimensions", "encoding_format", "keep_alive"],
    ),
    "/api/embed": ({"model": "embedder", "input": "hi"}, ["model", "input", "dimensions", "truncate", "keep_alive"]),
    "/api/embeddings": ({"model": "embedder", "prompt": "hi"}, ["model", "prompt", "keep_alive"]),
    "/v1/rerank": (
        {"model": "ranker", "query": "q", "documents": ["d"]},
        ["model", "query", "documents", "top_n", "return_documents", "truncate"],
    ),
    "/api/show": ({"model": "m"}, ["model", "name"]),
    "/api/pull": ({"model": "m", "stream": False}, ["model", "name", "as"]),
}
OPTION_NAMES = ["seed", "temperature", "stop", "num_ctx", "num_keep", "dry_sequence_breakers", "logit_bias", "repeat_penalty"]
OPTION_NAMES += [
    "mirostat",
    "top_k",
    "dry_base",
    "dry_multiplier",
    "dry_allowed_length",
    "min_tokens",
    "use_mmap",
    "xtc_threshold",
]


def bodies(path: str) -> st.SearchStrategy[dict[str, Any]]:
    base, fields = ROUTES[path]
    changes = st.dictionaries(st.sampled_from(fields), ANYTHING, min_size=1, max_size=3)
    if "options" in base:
        options = st.dictionaries(st.sampled_from(OPTION_NAMES), ANYTHING, max_size=3).map(lambda more: {**more, **OPTIONS})
        return st.builds(lambda some, more: {**base, **some, "options": more}, changes, options)
    return changes.map(lambda some: {**base, **some})


@pytest_asyncio.fixture(scope="module")
async def http(redis_url: str, registry_server: StandInRegistry) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with a fake-runner process for each of three models."""
    async with cluster(redis_url.removesuffix("/0") + "/3", registry_server, {"RUNNER": "fake"}) as client:
        yield client


@pytest_asyncio.fixture(scope="module")
async def real_http(redis_url: str, registry_server: StandInRegistry, smollm2_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The same, with SmolLM2 as the generating model."""
    real = {"RUNNER": "llama", "MODEL_PATH": str(smollm2_path), "BATCH_TOKENS": "128", "THREADS": "1"}
    async with cluster(redis_url.removesuffix("/0") + "/4", registry_server, real) as client:
        yield client


@asynccontextmanager
async def cluster(database: str, registry: StandInRegistry, runner: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """Uses a separate Redis database. All worker processes must survive."""
    redis = connect(database)
    capabilities = {CHAT: ("completion", "chat", "tools", "thinking", "insert"), EMBED: ("embedding",), RANK: ("rerank",)}
    versions = {digest: version_route(digest, chats=True, capabilities=known) for digest, known in capabilities.items()}
    tags = {f"registry.ollama.ai/library/{name}:latest": TagRoute(f"{name}:latest", NAMES[name], 1.0) for name in NAMES}
    await Routes(redis).publish(routes_snapshot(tags=tags, versions=versions))
    workers = [
        await started(database, CHAT, **runner),
        await started(database, EMBED, RUNNER="fake", POOLING="mean"),
        await started(database, RANK, RUNNER="fake", POOLING="rank"),
    ]

    async def all_are_ready() -> bool:
        reports = await Queue(redis).workers()
        return sum(report.state is WorkerState.READY for report in reports) == len(workers)

    try:
        async with serving(create_app(settings_for(database, registry))) as url:
            await ready(url)
            await eventually(all_are_ready, timeout_s=60)
            headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
            async with httpx.AsyncClient(base_url=url, timeout=LONGEST_ANSWER_S, headers=headers) as client:
                yield client
        assert [worker.returncode for worker in workers] == [None] * len(workers)
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.kill()
            await worker.wait()
        await redis.aclose()


async def started(redis_url: str, version: str, **more: str) -> asyncio.subprocess.Process:
    values = {"REDIS_URL": redis_url, "NODE": "here", "REPLICA": version[:8], "VERSION": version, "CONTEXT_TOKENS": "512"}
    values |= {"SLOTS": "16", "ORPHAN_S": "3600", **more}
    environment = {f"CORRAL_{name}": value for name, value in values.items()}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "services.worker", env={**os.environ, **environment})


REQUESTS = st.sampled_from(sorted(ROUTES)).flatmap(lambda path: st.tuples(st.just(path), bodies(path)))
NO_HURRY = (HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large)
CHATS = "/v1/chat/completions"


@settings(max_examples=250, deadline=None, suppress_health_check=NO_HURRY)
@given(asked=REQUESTS)
@example(asked=(CHATS, {**ROUTES[CHATS][0], "messages": [TURN] * 100_000}))
@example(asked=(CHATS, {**ROUTES[CHATS][0], "messages": [TURN] * 10_000}))
@example(
    asked=(
        "/v1/completions",
        {"model": "m", "prompt": "hi", "n": 16, "dry_sequence_breakers": [str(n) for n in range(600_000)]},
    )
)
@example(asked=("/api/generate", {"model": "m", "prompt": "hi", "options": {"stop": [str(n) for n in range(200_000)]}}))
async def test_any_body_is_answered_or_refused_and_others_are_served(
    http: httpx.AsyncClient, asked: tuple[str, dict[str, Any]]
) -> None:
    await check(http, *asked)


@settings(max_examples=25, deadline=None, suppress_health_check=NO_HURRY)
@given(asked=REQUESTS)
@example(asked=(CHATS, {**ROUTES[CHATS][0], "response_format": {"type": "json_object", "schema": COSTLY}}))
async def test_a_real_model_answers_or_refuses_any_body(
    real_http: httpx.AsyncClient, asked: tuple[str, dict[str, Any]]
) -> None:
    await check(real_http, *asked)


async def check(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    other = asyncio.create_task(http.post("/v1/completions", json={"model": "m", "prompt": "hi", "max_tokens": 2}))
    response = await http.post(path, content=json.dumps(body).encode())
    assert response.status_code < 500, (response.status_code, response.text[:500])
    assert "internal_error" not in response.text
    assert (await other).status_code == 200
    if response.status_code >= 400:
        assert len(response.text) < 3_000
