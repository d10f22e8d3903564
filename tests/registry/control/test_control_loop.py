"""The control loop with the real PostgreSQL and Valkey, and a scripted node."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from services.protocol.jobs import Delete, Pull, Start, Stop
from services.protocol.queue import Queue
from services.protocol.replies import ReplyReader
from services.protocol.reports import WorkerState
from services.protocol.routes import Routes
from services.registry.config import Settings
from tests.conditions import eventually
from tests.doubles.node import GIB, ScriptedNode, pulled_model
from tests.registry.conftest import Registry, RunRegistry
from tests.registry.steps import TINY, ask, demand, failure, one, pull, ready_nodes, serve, serving


async def test_a_waiting_request_loads_the_model_and_keep_alive_unloads_it(
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
    await eventually(lambda: demand_is_gone(queue, tiny))


async def demand_is_gone(queue: Queue, version: str) -> bool:
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


async def test_a_failed_load_fails_waiting_requests_with_the_workers_reason(
    registry: Registry, node: ScriptedNode, queue: Queue, replies: ReplyReader, tiny: str
) -> None:
    node.on_start = "broken"
    request = await ask(queue, tiny)
    failed = await failure(replies)
    assert (failed.request, failed.epoch, failed.seq, failed.code) == (request.id, 0, 0, "invalid_model_file")
    assert failed.message == "model 'tiny:latest' could not be loaded: bad magic"
    replica = await one(registry, "failed")
    assert replica["reason"] == "bad magic"

    # The file stays invalid, so the next request fails the same way without another start.
    again = await ask(queue, tiny)
    assert (await failure(replies)).request == again.id
    assert len(node.jobs(Start)) == 1


@pytest.mark.parametrize(
    ("on_start", "reason"),
    [("exit", "exited with code 3: the model could not be loaded"), ("refuse", "no memory left")],
    ids=["the process ends", "the job fails"],
)
async def test_a_failed_load_is_retried_on_the_next_request(
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


async def test_a_crashed_replica_is_replaced_while_requests_wait(
    registry: Registry, node: ScriptedNode, queue: Queue, tiny: str
) -> None:
    await ask(queue, tiny)
    first = await one(registry, "ready")
    await node.exit(first["id"], -9, "")
    assert (await one(registry, "failed"))["reason"] == "killed by signal 9, probably because memory ran out"
    second = await one(registry, "ready")
    assert second["id"] != first["id"]
    assert second["attempts"] == 2
    found = await demand(queue, tiny)
    assert found is not None
    assert found.waiting == 1


async def test_a_worker_that_served_but_was_never_seen_ready_is_replaced(
    registry: Registry, node: ScriptedNode, queue: Queue, tiny: str
) -> None:
    node.on_start = "loading"
    await ask(queue, tiny)
    first = (await one(registry, "starting"))["id"]
    process = await eventually(lambda: node.processes.get(first))
    assert process.worker is not None
    process.worker = msgspec.structs.replace(process.worker, state=WorkerState.READY)
    await queue.report(process.worker, lease_ms=3000)
    node.on_start = "ready"
    await node.exit(first, -9)
    await one(registry, "failed")
    assert (await one(registry, "ready"))["id"] != first
    found = await demand(queue, tiny)
    assert found is not None
    assert found.waiting == 1


async def test_a_worker_that_exits_with_0_is_stopped_and_not_failed(
    registry: Registry, node: ScriptedNode, queue: Queue, tiny: str
) -> None:
    await ask(queue, tiny)
    replica = await one(registry, "ready")
    await serve(queue, tiny, replica["id"])
    await node.exit(replica["id"], 0)
    await one(registry, "stopped")
    assert node.jobs(Stop) == []


async def test_a_restarted_registry_continues_from_rows_and_reports(
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


async def test_an_unknown_process_is_stopped(registry: Registry, node: ScriptedNode, queue: Queue, tiny: str) -> None:
    await ask(queue, tiny)
    replica = await one(registry, "ready")
    wanted = node.processes[replica["id"]]
    node.processes["nobody-knows-me"] = type(wanted)(pid=77, start=wanted.start)
    await eventually(lambda: [job for job in node.jobs(Stop) if job.replica == "nobody-knows-me"])
    assert node.running == [replica["id"]]


async def test_replicas_of_a_lost_node_are_placed_on_another(
    registry: Registry, node: ScriptedNode, queue: Queue, redis: Redis, tiny: str
) -> None:
    await ask(queue, tiny)
    first = await one(registry, "ready")
    async with ScriptedNode("n2", redis) as second:
        await eventually(lambda: ready_nodes_are(registry, "n1", "n2"))
        await node.vanish()
        await eventually(lambda: ready_on(registry, "n2"))
        stopped = await one(registry, "stopped")
        assert (stopped["id"], stopped["reason"]) == (first["id"], "node n1 was lost")
        # The other node had to fetch the file first.
        (fetch,) = second.jobs(Pull)
        assert fetch.source == TINY
        # The lost node comes back with its worker still running.
        node.processes[first["id"]].exit_code = None
        node.resume()
        await eventually(lambda: ready_nodes_are(registry, "n1", "n2"))
        await eventually(lambda: node.running == [], what="the orphan ends")


async def test_a_lost_node_can_be_removed(
    registry: Registry, node: ScriptedNode, queue: Queue, redis: Redis, tiny: str
) -> None:
    await ask(queue, tiny)
    first = await one(registry, "ready")
    refused = await registry.http.delete("/registry/v1/nodes/n1")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert refused.json()["error"] == "node n1 still reports: stop its agent first, or force the removal"
    await node.vanish()
    assert (await registry.http.delete("/registry/v1/nodes/n1")).status_code == 200
    assert (await registry.get("nodes"))["nodes"] == []
    assert first["id"] in [row["id"] for row in await registry.replicas("stopped")]
    assert (await registry.http.delete("/registry/v1/nodes/n1")).status_code == 404
    node.start_again("second")

    async def is_back() -> bool:
        return bool((await registry.get("nodes"))["nodes"])

    await eventually(is_back, what="the node")
    await ask(queue, tiny)  # the first request may have been refused while there was no node
    await eventually(lambda: ready_besides(registry, [first["id"]]), what="a replica on the node that came back")


@pytest.mark.parametrize("power_loss", [False, True], ids=["in order", "power loss"])
async def test_restarts_do_not_count_as_failures_of_the_model(
    settings: Settings, run_registry: RunRegistry, node: ScriptedNode, queue: Queue, power_loss: bool
) -> None:
    """After each of ten restarts of everything, the first request loads the model without a backoff."""
    settings.node_lost_after_s = settings.keep_alive = 1000
    served: list[str] = []
    async with run_registry(settings) as registry:
        await pull(registry, TINY)
        version = await registry.digest("tiny")
    for start in range(10):
        async with run_registry(settings) as registry:
            await ask(queue, version)
            (replica,) = await eventually(partial(ready_besides, registry, served), what="a new replica")
            assert replica["attempts"] == 1
            await serve(queue, version, replica["id"])
            served.append(replica["id"])
        report = node.processes[replica["id"]].worker
        await node.vanish()
        if power_loss and report:  # its lease has not expired yet
            await queue.report(report, lease_ms=3000)
        node.start_again(f"agent {start}")
    async with run_registry(settings) as registry:
        assert await registry.replicas("failed") == []


async def test_failures_before_a_restart_do_not_delay_a_start(
    settings: Settings, run_registry: RunRegistry, node: ScriptedNode, queue: Queue, replies: ReplyReader
) -> None:
    node.on_start = "exit"
    async with run_registry(settings) as registry:
        await pull(registry, TINY)
        version = await registry.digest("tiny")
        for attempt in range(1, 4):
            await ask(queue, version)
            await failure(replies)
            await eventually(partial(attempts_are, registry, attempt))
    await node.vanish()
    node.on_start = "ready"
    node.start_again("second")
    async with run_registry(settings) as registry:
        await ask(queue, version)
        assert (await one(registry, "ready"))["attempts"] == 1


async def attempts_are(registry: Registry, count: int) -> bool:
    return max((row["attempts"] for row in await registry.replicas("failed")), default=0) == count


async def ready_besides(registry: Registry, served: list[str]) -> list[dict[str, Any]]:
    return [row for row in await registry.replicas("ready") if row["id"] not in served]


async def ready_nodes_are(registry: Registry, *names: str) -> bool:
    return await ready_nodes(registry) == list(names)


async def ready_on(registry: Registry, node: str) -> bool:
    return [row["node"] for row in await registry.replicas("ready")] == [node]


async def test_the_least_recently_used_idle_model_is_unloaded_for_another(
    registry: Registry, node: ScriptedNode, queue: Queue
) -> None:
    await give_memory(registry, node, 4 * GIB)
    node.tensor_bytes = {f"pypi:{name}": int(1.5 * GIB) for name in ("one", "two", "three")}
    versions = {}
    for name in ("one", "two", "three"):
        await pull(registry, f"pypi:{name}")
        versions[name] = await registry.digest(name)
    for name in ("one", "two"):
        await ask(queue, versions[name])
        await eventually(partial(serving, registry, f"{name}:latest"))
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


async def test_requests_wait_if_nothing_can_make_room_and_the_reason_is_shown(
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


async def test_a_model_too_large_for_every_node_is_refused_with_the_numbers(
    registry: Registry, node: ScriptedNode, queue: Queue, replies: ReplyReader
) -> None:
    node.tensor_bytes = {"pypi:huge": 20 * GIB}
    await pull(registry, "pypi:huge")
    await ask(queue, await registry.digest("huge"))
    failed = await failure(replies)
    assert failed.code == "model_load_failed"
    assert "it needs 20.2 GiB of memory and the largest node, n1, has 8.0 GiB" in failed.message
    assert await registry.replicas() == []


async def test_a_deleted_model_is_drained_before_its_files_are_deleted(
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
    # It can be pulled again.
    await pull(registry, TINY)
    await ask(queue, tiny)
    await one(registry, "ready")


async def test_a_lost_job_is_sent_again(registry: Registry, node: ScriptedNode, queue: Queue, redis: Redis, tiny: str) -> None:
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
    await eventually(lambda: demand_is_gone(queue, "f" * 64))


async def test_the_registry_restores_a_flushed_redis(
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


async def test_only_one_registry_runs_the_loop(
    settings: Settings, run_registry: RunRegistry, redis: Redis, node: ScriptedNode, queue: Queue
) -> None:
    async with run_registry(settings) as first, run_registry(settings) as second:
        await pull(second, TINY)
        await ask(queue, await second.digest("tiny"))
        await one(first, "ready")
        assert len(node.jobs(Start)) == 1
    async with run_registry(settings) as third:
        await one(third, "ready")
