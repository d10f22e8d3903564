"""The queue: how many requests wait, how long, and whose they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from services.gateway.dependencies import CallerDep, QueueDep, RoutesDep
from services.protocol.reports import WorkerReport
from services.protocol.routes import LOCAL_CALLER, Caller, RoutesSnapshot
from services.protocol.waiting import Priority, VersionQueue

router = APIRouter()


class _CallerDepth(msgspec.Struct):
    caller: str
    waiting: int


class _ModelQueue(msgspec.Struct):
    """`drained_per_second` is how fast requests leave for a worker while others wait; None if not measured recently.

    `running` and `slots` are summed over all replicas.
    """

    model: str
    digest: str
    waiting: int
    by_priority: Mapping[Priority, int]
    oldest_wait_s: float
    drained_per_second: float | None
    running: int
    slots: int
    callers: list[_CallerDepth]


class _Queues(msgspec.Struct):
    models: list[_ModelQueue]


@router.get("/api/queue")
async def queues(caller: CallerDep, routes: RoutesDep, queue: QueueDep) -> Response:
    """Admins see the requests of every caller; others see their own, and the totals."""
    depths = await queue.depths(caller=None if caller.admin else caller.id)
    body = _Queues(_described(routes.current, depths, await queue.workers()))
    return Response(msgspec.json.encode(body), media_type="application/json")


def _described(snapshot: RoutesSnapshot, depths: Iterable[VersionQueue], workers: Sequence[WorkerReport]) -> list[_ModelQueue]:
    """Describes each model's queue, longest first."""
    names = _names([LOCAL_CALLER, *snapshot.callers.values()])
    models = [
        _model_queue(snapshot, depth, [worker for worker in workers if worker.version == depth.version], names)
        for depth in depths
        if depth.version in snapshot.versions
    ]
    return sorted(models, key=lambda model: (-model.waiting, model.model))


def _names(callers: Iterable[Caller]) -> dict[str, str]:
    return {caller.id: caller.name for caller in callers}


def _model_queue(
    snapshot: RoutesSnapshot, depth: VersionQueue, workers: Sequence[WorkerReport], names: Mapping[str, str]
) -> _ModelQueue:
    return _ModelQueue(
        model=min(tag.name for tag in snapshot.tags.values() if tag.version == depth.version),
        digest=depth.version,
        waiting=sum(depth.waiting.values()),
        by_priority=depth.waiting,
        oldest_wait_s=depth.oldest_ms / 1000,
        drained_per_second=depth.per_second,
        running=sum(worker.running for worker in workers),
        slots=sum(worker.slots for worker in workers),
        callers=[_CallerDepth(names.get(caller, caller), waiting) for caller, waiting in depth.callers.items()],
    )
