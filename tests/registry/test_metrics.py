"""The registry's metrics, and its list of scrape targets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from services.protocol.gateways import Gateways
from services.protocol.messages import GenerateRequest, new_id
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Queue
from services.protocol.reports import NodeReport, NodeReports, WorkerReport, WorkerState
from services.protocol.waiting import Priority, Terms
from services.registry.app import create_app
from services.registry.config import Settings
from services.registry.control.placement import NodeCapacity, PlacementRequest, Shortage, shortage
from services.registry.metrics import Metrics
from services.telemetry.exposition import Exposition
from services.telemetry.telemetry import Telemetry
from tests.conditions import eventually
from tests.doubles.node import GIB, ScriptedNode
from tests.registry.conftest import Registry
from tests.registry.steps import TINY, ask, one, pull
from tests.scraping import Scrape, scrape


class Watched(Registry):
    address: str

    async def scrape(self) -> Scrape:
        found = await scrape(self.address)
        found.require_documented()
        return found

    async def until(self, name: str, value: float, **labels: str) -> Scrape:
        async def matching() -> Scrape | None:
            found = await self.scrape()
            return found if found.all(name, **labels) and found.sum(name, **labels) == value else None

        found = await eventually(matching, what=f"{name} {labels} = {value}")
        assert found is not None
        return found


@pytest_asyncio.fixture
async def watched(settings: Settings, redis: Redis) -> AsyncIterator[Watched]:
    metrics = Metrics()
    exposition = Exposition(metrics.registry, host="127.0.0.1", port="auto", redis_url=settings.redis_url)
    app = create_app(settings, metrics, Telemetry(exposition.address))
    async with app.router.lifespan_context(app):
        running = Watched(app)
        running.address = exposition.address
        yield running
        await running.http.aclose()
    await asyncio.to_thread(exposition.close)


async def test_the_leader_reports_the_cluster(watched: Watched, node: ScriptedNode, queue: Queue) -> None:
    await pull(watched, TINY)
    await ask(queue, await watched.digest("tiny"))
    await one(watched, "ready")
    found = await watched.until("corral_replicas", 1, model="tiny:latest", state="ready")
    assert found.sum("corral_replicas", state="pending") == 0
    assert found.sum("corral_registry_leader") == 1
    assert found.sum("corral_nodes", state="ready") == 1
    assert found.sum("corral_replicas_wanted", model="tiny:latest") == 1
    assert found.sum("corral_blob_copies", node="n1") == 2
    assert found.sum("corral_jobs_total", kind="pull", outcome="succeeded") == 1
    assert found.sum("corral_jobs_total", kind="start", outcome="succeeded") == 1
    assert found.sum("corral_job_duration_seconds_count", kind="pull") == 1
    assert found.sum("corral_replica_memory_measured_bytes", model="tiny:latest", node="n1") == 12345
    assert found.sum("corral_replica_memory_estimated_bytes", model="tiny:latest", node="n1") > 0
    assert found.sum("corral_control_turn_seconds_count") > 2
    for decision in ("WantVersion", "CreateReplica", "StartReplica", "ReadyReplica"):
        assert found.sum("corral_control_decisions_total", decision=decision) == 1, decision


async def test_waiting_requests_by_priority_and_team(watched: Watched, node: ScriptedNode, queue: Queue) -> None:
    node.on_start = "loading"
    await pull(watched, TINY)
    version = await watched.digest("tiny")
    await watched.http.post("/registry/v1/keys", json={"name": "ada", "team": "core"})
    [key] = (await watched.get("keys"))["keys"]
    for priority in (Priority.BATCH, Priority.NORMAL, Priority.NORMAL):
        await _enqueue_as(queue, version, key["id"], priority)
    await _enqueue_as(queue, version, "local", Priority.NORMAL)
    found = await watched.until("corral_queue_waiting_requests", 3, model="tiny:latest", priority="normal")
    assert found.sum("corral_queue_waiting_requests", priority="batch") == 1
    assert found.sum("corral_queue_team_waiting_requests", model="tiny:latest", team="core") == 3
    assert found.sum("corral_queue_team_waiting_requests", model="tiny:latest", team="local") == 1

    async def has_waited() -> bool:
        return (await watched.scrape()).sum("corral_queue_oldest_wait_seconds", model="tiny:latest") > 0.1

    await eventually(has_waited)


async def _enqueue_as(queue: Queue, version: str, caller: str, priority: Priority) -> None:
    request = GenerateRequest(id=new_id(), version=version, gateway="g", caller=caller, prompt=TextPrompt("hi"))
    await queue.enqueue(request, cost=1, limit=100, terms=Terms(priority=priority))


async def test_failures_and_restarts_are_counted(watched: Watched, node: ScriptedNode) -> None:
    node.on_start = "exit"
    await pull(watched, TINY)
    await watched.http.put("/registry/v1/deployments/tiny", json={"replicas": 1})
    found = await watched.until("corral_replica_restarts_total", 1, model="tiny:latest")
    assert found.sum("corral_replica_failures_total", model="tiny:latest") >= 1


async def test_placement_refusals_are_counted_by_reason(watched: Watched, node: ScriptedNode) -> None:
    await pull(watched, TINY)
    node.memory = 1024
    await eventually(lambda: _has_memory(watched, 1024))
    await watched.http.put("/registry/v1/deployments/tiny", json={"replicas": 1})
    found = await watched.until("corral_replicas", 1, model="tiny:latest", state="pending")
    assert found.rows("corral_placement_refusals_total", "reason").keys() == {"memory"}


async def _has_memory(watched: Watched, total: int) -> bool:
    return [node["memory_total"] for node in (await watched.get("nodes"))["nodes"]] == [total]


def _room(**facts: Any) -> NodeCapacity:
    return NodeCapacity(**{"node": "n", "ready": True, "usable": 10, "available": 10, "disk_free": 10, "holds": False, **facts})


@pytest.mark.parametrize(
    ("want", "rooms", "short_of"),
    [
        (PlacementRequest(5, 5, True), [], "nodes"),
        (PlacementRequest(5, 5, True), [_room(ready=False)], "nodes"),
        (PlacementRequest(5, 5, False), [_room()], "file"),
        (PlacementRequest(5, 50, True), [_room()], "disk"),
        (PlacementRequest(5, 50, True), [_room(), _room(holds=True)], "memory"),
        (PlacementRequest(50, 5, True), [_room()], "memory"),
    ],
)
def test_shortages_by_resource(want: PlacementRequest, rooms: list[NodeCapacity], short_of: Shortage) -> None:
    assert shortage(want, rooms) == short_of


async def test_only_the_leader_reports_the_cluster(watched: Watched, settings: Settings, node: ScriptedNode) -> None:
    await watched.until("corral_registry_leader", 1)
    metrics = Metrics()
    exposition = Exposition(metrics.registry, host="127.0.0.1", port="auto", redis_url=settings.redis_url)
    second = create_app(settings, metrics)
    async with second.router.lifespan_context(second):
        found = await scrape(exposition.address)
    await asyncio.to_thread(exposition.close)
    assert found.sum("corral_registry_leader") == 0
    assert found.all("corral_registry_leader")
    assert not found.all("corral_nodes")
    assert not found.all("corral_replicas")


async def test_http_sd_lists_the_metrics_addresses(watched: Watched, redis: Redis, node: ScriptedNode, queue: Queue) -> None:
    await pull(watched, TINY)
    version = await watched.digest("tiny")
    known = WorkerReport("w1", "r1", version, "n7", WorkerState.READY, metrics="10.0.0.7:9464")
    silent = msgspec.structs.replace(known, worker="w2", replica="r2", metrics="")
    stranger = msgspec.structs.replace(known, worker="w3", replica="r3", version="e" * 64, metrics="10.0.0.8:9464")
    for report in (known, silent, stranger):
        await queue.report(report, lease_ms=60_000)
    machine = NodeReport("n7", "a", 1, GIB, GIB, GIB, GIB, (), (), (), (), metrics="10.0.0.7:9465")
    await NodeReports(redis).publish(machine, lease_ms=60_000)
    await Gateways(redis, metrics="10.0.0.9:9464").renew("gateway-1", lease_ms=60_000)
    await Gateways(redis).renew("gateway-2", lease_ms=60_000)
    assert await watched.get("http_sd") == [
        {
            "targets": ["10.0.0.7:9464"],
            "labels": {"service": "worker", "node": "n7", "replica": "r1", "model": "tiny:latest", "version": version[:12]},
        },
        {
            "targets": ["10.0.0.8:9464"],
            "labels": {"service": "worker", "node": "n7", "replica": "r3", "model": "e" * 12, "version": "e" * 12},
        },
        {"targets": ["10.0.0.7:9465"], "labels": {"service": "node", "node": "n7"}},
        {"targets": ["10.0.0.9:9464"], "labels": {"service": "gateway"}},
        {"targets": [watched.address], "labels": {"service": "registry"}},
    ]
    only = await watched.get("http_sd", service=["node", "gateway"])
    assert [target["labels"]["service"] for target in only] == ["node", "gateway"]
    wrong = await watched.http.get("/registry/v1/http_sd", params={"service": "toaster"})
    assert wrong.status_code == 400
    anonymous = await watched.http.get("/registry/v1/http_sd", headers={"authorization": ""})
    assert anonymous.status_code == 401
