"""One request through a real gateway and real workers: its spans in a collector, and its lines in the logs of both services."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.conditions import eventually
from tests.doubles.collector import Collector, SpanSeen, collecting
from tests.faults.cluster import Cluster, running

CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = CALLERS.split("-")[1]
ASKED: dict[str, Any] = {
    "model": "fake",
    "messages": [{"role": "user", "content": "tell me a secret"}],
    "stream": False,
    "options": {"num_predict": 4},
}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest_asyncio.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> AsyncIterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORRAL_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("CORRAL_LOG_FORMAT", "json")
        async with running(tmp_path_factory.mktemp("cluster"), workers=1, environment={"CORRAL_RUNNER": "fake"}) as cluster:
            yield cluster


async def chat(cluster: Cluster, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=30, trust_env=False) as http:
        return await http.post("/api/chat", json=ASKED, headers=headers)


async def spans_of(collector: Collector, request: str) -> dict[str, SpanSeen]:
    """The request's spans by name."""

    async def arrived() -> dict[str, SpanSeen]:
        roots = [span for span in collector.spans if span.attributes.get("corral.request") == request]
        trace = roots[0].trace if roots else ""
        found = {span.name: span for span in collector.spans if span.trace == trace}
        return found if len(found) == 5 else {}

    return await eventually(arrived, what="five spans")


async def test_spans_cover_a_request_from_the_caller_to_the_engine(cluster: Cluster, collector: Collector) -> None:
    answer = await chat(cluster, traceparent=CALLERS)
    found = await spans_of(collector, answer.headers["x-request-id"])
    root, work = found["chat fake:latest"], found["work"]
    assert {span.trace for span in found.values()} == {TRACE}
    assert root.parent == CALLERS.split("-")[2]
    assert found["queue"].parent == work.parent == root.id
    assert found["prefill"].parent == found["decode"].parent == work.id
    assert (root.service, work.service) == ("corral-gateway", "corral-worker")
    assert root.started_ns <= found["queue"].started_ns <= found["queue"].ended_ns <= root.ended_ns
    assert (
        root.started_ns < work.started_ns < work.ended_ns <= root.ended_ns + 50_000_000
    )  # the worker's end is sent with its last frame
    assert found["prefill"].ended_ns == found["decode"].started_ns
    assert root.attributes["gen_ai.request.model"] == "fake:latest"
    assert root.attributes["gen_ai.usage.output_tokens"] == "4"
    assert work.attributes["corral.reason"] == "length"
    assert not any(span.failed for span in found.values())


async def test_each_request_without_a_callers_trace_has_a_new_trace(cluster: Cluster, collector: Collector) -> None:
    answers = [await chat(cluster), await chat(cluster, traceparent="nonsense")]
    found = [await spans_of(collector, answer.headers["x-request-id"]) for answer in answers]
    traces = {one["work"].trace for one in found}
    assert len(traces) == 2
    assert TRACE not in traces
    assert all(one["chat fake:latest"].parent == "" for one in found)


def lines_of(folder: Path, request: str) -> list[dict[str, Any]]:
    """The request's lines in the logs of the gateway and the workers, in order of time."""
    logs = [folder / "gateway.log", *(folder / "workers").glob("*.log")]
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return sorted((line for line in lines if line.get("request") == request), key=lambda line: str(line["time"]))


async def test_both_services_log_lines_with_the_requests_id(cluster: Cluster) -> None:
    answer = await chat(cluster, traceparent=CALLERS)
    request = answer.headers["x-request-id"]
    lines = await eventually(lambda: found if len(found := lines_of(cluster.folder, request)) == 4 else [])
    events = {line["event"]: line for line in lines}
    assert lines[0]["event"] == "request arrived"
    assert set(events) == {"request arrived", "request claimed", "request left", "request ended"}
    assert [events[event]["service"] for event in ("request arrived", "request claimed", "request left", "request ended")] == [
        *("gateway", "worker", "worker", "gateway")
    ]
    assert events["request arrived"]["trace"] == TRACE
    assert (events["request arrived"]["model"], events["request arrived"]["team"]) == ("fake:latest", "local")
    assert (events["request ended"]["outcome"], events["request ended"]["completion_tokens"]) == ("answered", 4)
    assert events["request left"]["reason"] == "length"
    every = "".join(path.read_text() for path in [cluster.folder / "gateway.log", *(cluster.folder / "workers").glob("*.log")])
    assert "tell me a secret" not in every
    assert all(json.loads(line)["event"] for line in every.splitlines())


async def test_prompts_are_logged_if_configured(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_LOG_FORMAT", "json")
    monkeypatch.setenv("CORRAL_LOG_PROMPTS", "true")
    await cluster.stop_gateway()
    await cluster.start_gateway()
    request = (await chat(cluster)).headers["x-request-id"]
    lines = await eventually(lambda: lines_of(cluster.folder, request))
    assert lines[0]["prompt"]["messages"] == [{"role": "user", "content": "tell me a secret"}]


def test_otlp_is_not_imported_without_an_endpoint() -> None:
    import subprocess
    import sys

    program = "import sys, services.gateway.__main__, services.worker.__main__; print('services.telemetry.otlp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ, timeout=60
    )
    assert done.stdout == "False\n"
