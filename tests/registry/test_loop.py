"""The control loop against the real PostgreSQL and Valkey, with a scripted node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from services.protocol.jobs import Delete, Pull, Start, Stop
from services.protocol.messages import Failed, GenerateRequest, new_id
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Demand, Queue
from services.protocol.replies import ReplyReader
from services.protocol.reports import WorkerState
from services.protocol.routes import Routes
from services.registry.config import Settings
from tests.conditions import eventually
from tests.registry.conftest import Registry, RunRegistry
from tests.registry.scripted_node import GIB, ScriptedNode, pulled_model

TINY = "pypi:tiny"


async def ask(queue: Queue, version: str, *, keep_alive_ms: int | None = None) -> GenerateRequest:
    request = GenerateRequest(id=new_id(), version=version, gateway="g", caller="c", prompt=TextPrompt("hi"))
    await queue.enqueue(request, cost=1, limit=100, keep_alive_ms=keep_alive_ms)
    return request


async def serve(queue: Queue, version: str, replica: str) -> None:
    """As the worker would: takes what waits and answers it."""
    for claim in (await queue.claim(version, f"w-{replica}", capacity=100)).claims:
        await queue.settle(claim.request.id, claim.epoch, cost=1)


async def one(registry: Registry, *states: str) -> dict[str, Any]:
    """The only replica in these states, once there is one."""

    async def found() -> list[dict[str, Any]]:
        rows = await registry.replicas(*states)
        return rows if len(rows) == 1 else []

    return (await eventually(found, what=f"one replica in {states}"))[0]


async def none_live(registry: Registry) -> bool:
    return not await registry.replicas("pending", "fetching", "starting", "ready", "draining")


async def demand(queue: Queue, version: str) -> Demand | None:
    return next((entry for entry in await queue.demand() if entry.version == version), None)


@pytest_asyncio.fixture
async def tiny(registry: Registry, node: ScriptedNode) -> str:
    """A pulled model's version."""
    await pull(registry, TINY)
    return await registry.digest("tiny")


async def pull(registry: Registry, source: str, named: str | None = None) -> None:
    await eventually(lambda: ready_nodes(registry))
    lines = await registry.pull(source, named)
    assert lines[-1] == {"status": "success"}, lines


async def ready_nodes(registry: Registry) -> list[str]:
    return [node["name"] for node in (await registry.get("nodes"))["nodes"] if node["state"] == "ready"]


@pytest_asyncio.fixture
async def replies(redis: Redis) -> AsyncIterator[ReplyReader]:
    reader = ReplyReader(redis, "g")
    await reader.keep(lease_ms=60_000)
    yield reader


async def failure(replies: ReplyReader) -> Failed:
    for _ in range(10):
        for reply in await replies.read(timeout_s=1):
            assert reply.worker == ""
            (event,) = reply.events
            assert isinstance(event, Failed)
            return event
    raise AssertionError("nothing was refused")


async def test_a_waiting_request_loads_the_model_and_idleness_unloads_it(
    registry: Registry, node: ScriptedNode, queue: Queue, redis: Redis, tiny: str
) -> None:
    await ask(queue, tiny, keep_alive_ms=200)
    replica = await one(registry, "ready")
    (start,) = node.jobs(Start)
    assert (start.replica, start.version, start.model) == (replica["id"], tiny, pulled_model("tiny", TINY).layers[0].digest)
    assert replica["model"] == "tiny:latest"
    assert replica["memory_bytes"] == 12345

    async def published() -> bool:
        snapshot = await Routes(redis).load()
        return snapshot is not None and [(route.id, route.state) for route in snapshot.replicas] == [(replica["id"], "ready")]

    await eventually(published)
    await serve(queue, tiny, replica["id"])
    stopped = await one(registry, "stopped")
    assert stopped["reason"] == "unused for longer than its keep_alive"
    assert node.running == []
    await eventually(lambda: gone(queue, tiny))


async def gone(queue: Queue, version: str) -> bool:
    return await demand(queue, version) is None


async def test_keep_alive_zero_unloads_at_once_and_negative_never(
    registry: Registry, node: ScriptedNode, queue: Queue, tiny: str
) -> None:
    await ask(queue, tiny, keep_alive_ms=-1)
    replica = await one(registry, "ready")
    await serve(queue, tiny, replica["id"])
    await queue.touch(tiny, keep_alive_ms=0)
    await one(registry, "stopped")


async def test_a_busy_replica_is_not_unloaded(registry: Registry, node: ScriptedNode, queue: Queue, tiny: str) -> None:
    await ask(queue, tiny, keep_alive_ms=0)
    replica = await one(registry, "ready")
    process = node.processes[replica["id"]]
    process.worker = node.worker(process.start, WorkerState.READY, running=1)
    await node.publish()
    await serve(queue, tiny, replica["id"])
    await pull(registry, "pypi:other")
    assert (await one(registry, "ready"))["id"] == replica["id"]
    process.worker = node.worker(process.start, WorkerState.READY)
    await one(registry, "stopped")


async def test_a_failed_load_refuses_what_waits_with_the_workers_reason(
    registry: Registry, node: ScriptedNode, queue: Queue, replies: ReplyReader, tiny: str
) -> None:
    node.on_start = "broken"
    request = await ask(queue, tiny)
    failed = await failure(replies)
    assert (failed.request, failed.epoch, failed.seq, failed.code) == (request.id, 0, 0, "invalid_model_file")
    assert failed.message == "model 'tiny:latest' could not be loaded: bad magic"
    replica = await one(registry, "failed")
    assert replica["reason"] == "bad magic"

    # The file is no better a moment later: the next one hears the same without another try.
    again = await ask(queue, tiny)
    assert (await failure(replies)).request == again.id
    assert len(node.jobs(Start)) == 1


@pytest.mark.parametrize(
    ("on_start", "reason"),
    [("exit", "exit code 3: out of luck"), ("refuse", "no memory left")],
    ids=["the process ends", "the job fails"],
)
async def test_a_load_that_fails_is_tried_again_when_somebody_asks(
    registry: Registry, node: ScriptedNode, queue: Queue, replies: ReplyReader, tiny: str, on_start: str, reason: str
) -> None:
    node.on_start = on_start
    await ask(queue, tiny)
    failed = await failure(replies)
    assert (failed.code, failed.message) == ("model_load_failed", f"model 'tiny:latest' could not be loaded: {reason}")
    node.on_start = "ready"
    await ask(queue, tiny)
    replica = await one(registry, "ready")
    assert replica["attempts"] == 2


async def test_a_crash_while_requests_wait_is_made_good_by_a_new_replica(
    registry: Registry, node: ScriptedNode, queue: Queue, tiny: str
) -> None:
    await ask(queue, tiny)
    first = await one(registry, "ready")
    await node.exit(first["id"], -9, "")
    assert (await one(registry, "failed"))["reason"] == "killed by SIGKILL"
    second = await one(registry, "ready")
    assert second["id"] != first["id"]
    assert second["attempts"] == 2
    found = await demand(queue, tiny)
    assert found is not None
    assert found.waiting == 1


async def test_a_worker_that_ends_in_order_is_no_failure(
    registry: Registry, node: ScriptedNode, queue: Queue, tiny: str
) -> None:
    await ask(queue, tiny)
    replica = await one(registry, "ready")
    await serve(queue, tiny, replica["id"])
    await node.exit(replica["id"], 0)
    await one(registry, "stopped")
    assert node.jobs(Stop) == []


async def test_a_registry_that_restarts_goes_on_from_rows_and_reports(
    settings: Settings, run_registry: RunRegistry, redis: Redis, node: ScriptedNode, queue: Queue
) -> None:
    node.on_start = "loading"
    async with run_registry(settings) as registry:
        await pull(registry, TINY)
        version = await registry.digest("tiny")
        await ask(queue, version)
        replica = await one(registry, "starting")
        await eventually(lambda: node.processes)
    snapshot = await Routes(redis).load()
    assert snapshot is not None
    process = node.processes[replica["id"]]
    process.worker = node.worker(process.start, WorkerState.READY)
    async with run_registry(settings) as registry:
        assert (await one(registry, "ready"))["id"] == replica["id"]

        async def newer() -> bool:
            later = await Routes(redis).load()
            return later is not None and later.revision > snapshot.revision

        await eventually(newer)
    assert len(node.jobs(Start)) == 1


async def test_what_runs_unwanted_is_stopped(registry: Registry, node: ScriptedNode, queue: Queue, tiny: str) -> None:
    await ask(queue, tiny)
    replica = await one(registry, "ready")
    wanted = node.processes[replica["id"]]
    node.processes["nobody-knows-me"] = type(wanted)(pid=77, start=wanted.start)
    await eventually(lambda: [job for job in node.jobs(Stop) if job.replica == "nobody-knows-me"])
    assert node.running == [replica["id"]]


async def test_a_lost_nodes_replicas_are_placed_elsewhere(
    registry: Registry, node: ScriptedNode, queue: Queue, redis: Redis, tiny: str
) -> None:
    await ask(queue, tiny)
    first = await one(registry, "ready")
    async with ScriptedNode("n2", redis) as second:
        await eventually(lambda: ready_nodes_are(registry, "n1", "n2"))
        await node.vanish()
        await eventually(lambda: ready_on(registry, "n2"))
        failed = await one(registry, "failed")
        assert (failed["id"], failed["reason"]) == (first["id"], "node n1 was lost")
        # The new node had to fetch the file first.
        (fetch,) = second.jobs(Pull)
        assert fetch.source == TINY
        # The lost one comes back with its worker still running.
        node.processes[first["id"]].exit_code = None
        node.resume()
        await eventually(lambda: ready_nodes_are(registry, "n1", "n2"))
        await eventually(lambda: node.running == [], what="the orphan ends")


async def ready_nodes_are(registry: Registry, *names: str) -> bool:
    return await ready_nodes(registry) == list(names)


async def ready_on(registry: Registry, node: str) -> bool:
    return [row["node"] for row in await registry.replicas("ready")] == [node]


async def test_the_least_recently_used_idle_model_makes_room(registry: Registry, node: ScriptedNode, queue: Queue) -> None:
    await give_memory(registry, node, 4 * GIB)
    node.tensor_bytes = {f"pypi:{name}": int(1.5 * GIB) for name in ("one", "two", "three")}
    versions = {}
    for name in ("one", "two", "three"):
        await pull(registry, f"pypi:{name}")
        versions[name] = await registry.digest(name)
    for name in ("one", "two"):
        await ask(queue, versions[name])
        await eventually(lambda name=name: serving(registry, f"{name}:latest"))
        (row,) = [row for row in await registry.replicas("ready") if row["model"] == f"{name}:latest"]
        await serve(queue, versions[name], row["id"])
    await ask(queue, versions["three"])
    await eventually(lambda: serving(registry, "three:latest"))
    assert {row["model"] for row in await registry.replicas("ready")} == {"two:latest", "three:latest"}
    (evicted,) = await registry.replicas("stopped")
    assert evicted["model"] == "one:latest"


async def give_memory(registry: Registry, node: ScriptedNode, size: int) -> None:
    node.memory = size

    async def known() -> bool:
        return [row["memory_total"] for row in (await registry.get("nodes"))["nodes"]] == [size]

    await eventually(known)


async def serving(registry: Registry, model: str) -> bool:
    return model in [row["model"] for row in await registry.replicas("ready")]


async def test_requests_wait_where_nothing_can_make_room_and_say_why(
    registry: Registry, node: ScriptedNode, queue: Queue
) -> None:
    await give_memory(registry, node, 2 * GIB)
    node.tensor_bytes = {"pypi:busy": int(1.5 * GIB), "pypi:late": int(1.5 * GIB)}
    await pull(registry, "pypi:busy")
    await pull(registry, "pypi:late")
    await ask(queue, await registry.digest("busy"))
    busy = await one(registry, "ready")
    late = await registry.digest("late")
    await ask(queue, late)

    async def explained() -> bool:
        rows = await registry.replicas("pending")
        return bool(rows) and "of memory free, 1.7 GiB are needed" in rows[0]["reason"]

    await eventually(explained)
    assert "n1 has" in (await registry.get("status"))["waiting"][0]
    await serve(queue, busy["version"], busy["id"])
    await eventually(lambda: serving(registry, "late:latest"))


async def test_what_never_fits_is_refused_with_numbers(
    registry: Registry, node: ScriptedNode, queue: Queue, replies: ReplyReader
) -> None:
    node.tensor_bytes = {"pypi:huge": 20 * GIB}
    await pull(registry, "pypi:huge")
    await ask(queue, await registry.digest("huge"))
    failed = await failure(replies)
    assert failed.code == "model_load_failed"
    assert "it needs 20.2 GiB of memory and the largest node, n1, has 8.0 GiB" in failed.message
    assert await registry.replicas() == []


async def test_a_deleted_model_that_serves_is_drained_before_its_files_go(
    registry: Registry, node: ScriptedNode, queue: Queue, replies: ReplyReader, tiny: str
) -> None:
    await ask(queue, tiny)
    await one(registry, "ready")
    answer = await registry.http.request("DELETE", "/registry/v1/models", json={"model": "Tiny"})
    assert (answer.status_code, answer.content) == (200, b"")
    await eventually(lambda: node.jobs(Delete))
    kinds = [type(job) for job in node.taken]
    assert kinds.index(Stop) < kinds.index(Delete)
    assert node.running == []
    await eventually(lambda: not node.blobs)
    assert (await failure(replies)).code == "model_not_found"
    # Pulled again, it is there again.
    await pull(registry, TINY)
    await ask(queue, tiny)
    await one(registry, "ready")


async def test_a_job_that_no_node_works_on_is_sent_again(
    registry: Registry, node: ScriptedNode, queue: Queue, redis: Redis, tiny: str
) -> None:
    node.takes_jobs = False
    await ask(queue, tiny)
    await one(registry, "starting")
    await eventually(lambda: redis.llen("node.n1"))
    await redis.delete("node.n1")
    node.takes_jobs = True
    await one(registry, "ready")


async def test_requests_for_an_unknown_version_are_refused(registry: Registry, queue: Queue, replies: ReplyReader) -> None:
    await ask(queue, "f" * 64)
    assert (await failure(replies)).code == "model_not_found"
    await eventually(lambda: gone(queue, "f" * 64))


async def test_redis_that_forgets_everything_is_told_again(
    registry: Registry, node: ScriptedNode, queue: Queue, redis: Redis, tiny: str
) -> None:
    await ask(queue, tiny, keep_alive_ms=-1)
    replica = await one(registry, "ready")
    await redis.flushdb()

    async def published() -> bool:
        snapshot = await Routes(redis).load()
        return snapshot is not None and [route.id for route in snapshot.replicas] == [replica["id"]]

    await eventually(published)
    assert (await one(registry, "ready"))["id"] == replica["id"]


async def test_only_one_registry_leads(
    settings: Settings, run_registry: RunRegistry, redis: Redis, node: ScriptedNode, queue: Queue
) -> None:
    async with run_registry(settings) as first, run_registry(settings) as second:
        await pull(second, TINY)
        await ask(queue, await second.digest("tiny"))
        await one(first, "ready")
        assert len(node.jobs(Start)) == 1
    async with run_registry(settings) as third:
        await one(third, "ready")
