"""Node reports and their leases. Worker reports are tested with the queue."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from services.protocol.connection import connect
from services.protocol.errors import Unavailable
from services.protocol.reports import BlobReport, Device, NodeReport, NodeReports, ProcessReport
from tests.conditions import eventually

LEASE_MS = 600_000


def a_report(node: str = "node-1", *, jobs: tuple[str, ...] = ()) -> NodeReport:
    return NodeReport(
        node=node,
        agent="agent-1",
        cpus=2,
        memory_total=8,
        memory_available=4,
        disk_total=100,
        disk_free=50,
        devices=(Device("cuda", "a card", 16),),
        processes=(
            ProcessReport("r1", 17, None, "ready"),
            ProcessReport("r2", 18, -9, "Killed", "ran out of memory", "insufficient_memory"),
        ),
        blobs=(BlobReport("sha256:" + "a" * 64, 12),),
        jobs=jobs,
    )


@pytest.fixture
def reports(redis: Redis) -> NodeReports:
    return NodeReports(redis)


async def test_there_are_no_reports_at_first(reports: NodeReports) -> None:
    assert await reports.read() == []


async def test_a_report_is_read_unchanged(reports: NodeReports) -> None:
    await reports.publish(a_report(), lease_ms=LEASE_MS)
    assert await reports.read() == [a_report()]


async def test_each_node_has_only_its_latest_report(reports: NodeReports) -> None:
    for number in range(3):
        await reports.publish(a_report("node-1", jobs=(str(number),)), lease_ms=LEASE_MS)
    await reports.publish(a_report("node-2"), lease_ms=LEASE_MS)
    found = {report.node: report for report in await reports.read()}
    assert found == {"node-1": a_report("node-1", jobs=("2",)), "node-2": a_report("node-2")}


async def test_a_silent_node_disappears_after_its_lease(redis: Redis, reports: NodeReports) -> None:
    await reports.publish(a_report("silent"), lease_ms=1)
    await reports.publish(a_report("alive"), lease_ms=LEASE_MS)

    async def one_is_left() -> bool:
        return await reports.read() == [a_report("alive")]

    await eventually(one_is_left, timeout_s=5)
    assert await reports.is_alive("alive")
    assert not await reports.is_alive("silent")


async def test_a_report_extends_the_lease(redis: Redis, reports: NodeReports) -> None:
    await reports.publish(a_report(), lease_ms=1000)
    await reports.publish(a_report(), lease_ms=LEASE_MS)
    assert await redis.pttl("corral:node:node-1") > 1000


async def test_a_removed_node_is_gone_at_once(redis: Redis, reports: NodeReports) -> None:
    await reports.publish(a_report(), lease_ms=LEASE_MS)
    await reports.remove("node-1")
    await reports.remove("never-there")
    assert await reports.read() == []
    assert await redis.keys("*") == []


async def test_an_undecodable_report_is_skipped(redis: Redis, reports: NodeReports) -> None:
    await redis.set("corral:node:old", b"\x63of another release")
    await reports.publish(a_report(), lease_ms=LEASE_MS)
    assert await reports.read() == [a_report()]


async def test_reports_are_unavailable_without_redis(unused_tcp_port: int) -> None:
    async with connect(f"redis://127.0.0.1:{unused_tcp_port}/0") as redis:
        reports = NodeReports(redis)
        for call in (reports.publish(a_report(), lease_ms=1), reports.remove("n"), reports.is_alive("n"), reports.read()):
            with pytest.raises(Unavailable):
                await call


@pytest.mark.parametrize(
    "lie",
    [
        {"memory_total": 2**63},
        {"disk_free": -1},
        {"node": ""},
        {"agent": "a\0b"},
        {"devices": (Device("cuda", "a card", -1),)},
        {"blobs": (BlobReport("sha256:no", 1),)},
        {"jobs": ("x" * 256,)},
    ],
    ids=lambda lie: next(iter(lie)),
)
async def test_only_the_invalid_report_is_skipped(reports: NodeReports, lie: dict[str, Any]) -> None:
    await reports.publish(msgspec.structs.replace(a_report("node-2"), **lie), lease_ms=LEASE_MS)
    await reports.publish(a_report(), lease_ms=LEASE_MS)
    assert await reports.read() == [a_report()]
