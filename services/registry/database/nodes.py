"""Nodes and blob copies, as agents report them. The only writer of both tables.

A report holds the node's whole state, so recording it twice, or after missing others, gives the same rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.errors import Conflict, NotFound
from services.protocol.reports import NodeReport
from services.registry.database import replicas
from services.registry.database.database import transaction_time
from services.registry.database.tables import Blob, BlobCopy, Node
from services.registry.states import CopyState, NodeState

#: How long a new copy may be absent from reports before it counts as missing: a pull's outcome may arrive before the next
#: report.
COPY_GRACE_S = 10.0


async def record(session: AsyncSession, reports: Sequence[NodeReport]) -> dict[str, datetime]:
    """Marks every reporting node as ready and seen now, and updates its facts and blob copies. Returns the nodes that have a
    new agent, with the present time."""
    if not reports:
        return {}
    now = await transaction_time(session)
    started = await _record_nodes(session, reports, now)
    await _record_copies(session, reports, now)
    return dict.fromkeys(started, now)


async def lose(session: AsyncSession, node: str) -> None:
    row = await session.get(Node, node, with_for_update=True)
    if row:
        row.state = NodeState.LOST


async def remove(session: AsyncSession, node: str, *, reports: bool) -> None:
    """Deletes the node's row with its jobs and blob copies, and ends its replicas. Raises NotFound, and Conflict if it
    `reports`."""
    row = await session.get(Node, node, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no node {node}")
    if reports:
        raise Conflict(f"node {node} still reports: stop its agent first, or force the removal")
    await replicas.leave_node(session, node)
    await session.delete(row)


async def add_copies(session: AsyncSession, node: str, blobs: Collection[str]) -> None:
    """Records that the node has just verified these blobs."""
    rows = [{"blob_digest": blob, "node_name": node, "state": CopyState.VERIFIED} for blob in sorted(blobs)]
    if not rows:
        return
    fresh = {"state": CopyState.VERIFIED, "verified_at": func.now()}
    await session.execute(
        insert(BlobCopy).values(rows).on_conflict_do_update(index_elements=["blob_digest", "node_name"], set_=fresh)
    )


async def mark_used(session: AsyncSession, node: str, blob: str) -> None:
    copy = (BlobCopy.node_name == node) & (BlobCopy.blob_digest == blob)
    await session.execute(update(BlobCopy).where(copy).values(last_used_at=func.now()))


async def _record_nodes(session: AsyncSession, reports: Sequence[NodeReport], now: datetime) -> list[str]:
    known = {node.name: node for node in await session.scalars(select(Node).where(Node.name.in_([r.node for r in reports])))}
    started = [report.node for report in reports if report.node not in known or known[report.node].agent != report.agent]
    for report in reports:
        facts = _facts(report)
        if node := known.get(report.node):
            # At most one write per node and second.
            if report.node not in started and node.state is NodeState.READY and now - node.last_seen_at < timedelta(seconds=1):
                continue
            for column, value in facts.items():
                setattr(node, column, value)
            node.state, node.last_seen_at = NodeState.READY, now
        else:
            session.add(Node(name=report.node, state=NodeState.READY, last_seen_at=now, **facts))
    await session.flush()
    return started


def _facts(report: NodeReport) -> dict[str, Any]:
    return {
        "agent": report.agent,
        "cpus": report.cpus,
        "memory_total": report.memory_total,
        "memory_available": report.memory_available,
        "disk_total": report.disk_total,
        "disk_free": report.disk_free,
        "devices": [msgspec.to_builtins(device) for device in report.devices],
    }


async def _record_copies(session: AsyncSession, reports: Sequence[NodeReport], now: datetime) -> None:
    """Records new copies and those that are missing now. Only blobs of known versions have rows."""
    held = {report.node: {blob.digest for blob in report.blobs} for report in reports}
    known = set(await session.scalars(select(Blob.digest).where(Blob.digest.in_(set().union(*held.values())))))
    copies = await session.scalars(select(BlobCopy).where(BlobCopy.node_name.in_(list(held))))
    recorded: dict[str, set[str]] = {node: set() for node in held}
    for copy in copies:
        if copy.state is CopyState.VERIFIED:
            recorded[copy.node_name].add(copy.blob_digest)
            settled = now - copy.verified_at > timedelta(seconds=COPY_GRACE_S)
            if copy.blob_digest not in held[copy.node_name] and settled:
                copy.state = CopyState.MISSING
    for node, digests in held.items():
        await add_copies(session, node, (digests & known) - recorded[node])
