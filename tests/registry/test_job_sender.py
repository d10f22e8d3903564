"""Jobs, received with Celery."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis.asyncio import Redis

from services.protocol.engine import EngineSettings
from services.protocol.errors import QueueMemoryFull, Unavailable
from services.protocol.jobs import JOB_TASK, Start, Stop, job_from_payload, node_queue
from services.registry.job_sender import JobSender
from tests.valkey import disk_valkey, full_memory


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_celery_consumer_gets_the_job_and_no_result_is_stored(redis: Redis, redis_url: str) -> None:
    received: queue.Queue[tuple[str, Any]] = queue.Queue()
    app = Celery("agent", broker=redis_url, set_as_current=False)
    app.conf.update(accept_content=["json"], worker_hijack_root_logger=False)

    def job(self: Any, payload: dict[str, Any]) -> None:
        received.put((self.request.id, payload))

    app.task(name=JOB_TASK, bind=True)(job)
    sender = JobSender(redis_url)
    start = Start("j1", "r1", "v", "sha256:b", EngineSettings(slots=2))
    await sender.send("n1", start)
    await sender.send("n2", Stop("j2", "r2"))
    with app.connection_for_read() as connection, connection.SimpleQueue(node_queue("n1")) as inbox:
        message = inbox.get(timeout=5)
        message.ack()
        assert message.content_type == "application/json"
        app.tasks[JOB_TASK].apply(args=message.payload[0], task_id=message.headers["id"]).get()
    task_id, payload = received.get_nowait()
    assert task_id == "j1"
    assert job_from_payload(payload) == start
    assert [key async for key in redis.scan_iter("celery-task-meta-*")] == []
    sender.close()


async def test_an_unreachable_broker_is_unavailable() -> None:
    sender = JobSender("redis://127.0.0.1:1/0")
    with pytest.raises(Unavailable, match="(Redis|the job broker) does not answer"):
        await sender.send("n1", Stop("j", "r"))
    sender.close()


async def test_a_broker_with_full_memory_refuses_the_job(redis: Redis, redis_url: str) -> None:
    sender = JobSender(redis_url)
    async with full_memory(redis):
        with pytest.raises(QueueMemoryFull, match="^the queue's memory is full$"):
            await sender.send("n1", Stop("j", "r"))
    await sender.send("n1", Stop("j", "r"))
    sender.close()


async def test_a_broker_with_a_full_disk_is_unavailable(tmp_path: Path) -> None:
    async with disk_valkey(tmp_path) as server, server.full_disk():
        sender = JobSender(server.url)
        with pytest.raises(Unavailable, match="^the queue's disk is full$"):
            await sender.send("n1", Stop("j", "r"))
        sender.close()
