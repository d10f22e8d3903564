"""GET /http_sd: everything that serves metrics, as Prometheus wants its targets listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from services.protocol.reports import NodeReport, WorkerReport
from services.registry import catalog
from services.registry.api.dependencies import PartsDep

router = APIRouter()

Service = Literal["worker", "node", "gateway", "registry"]
_DIGITS = 12


@router.get("/http_sd")
async def http_sd(parts: PartsDep, service: Annotated[list[Service] | None, Query()] = None) -> list[dict[str, Any]]:
    """Of these services; of all without. Of several registries each lists itself."""
    async with parts.database.snapshot() as session:
        names = await catalog.display_names(session)
    found = [
        *_workers(await parts.queue.workers(), names),
        *_nodes(await parts.nodes.read()),
        *(_target("gateway", address) for address in await parts.gateways.metrics()),
        _target("registry", parts.metrics_address),
    ]
    return [target for target in found if target["targets"] != [""] and (not service or target["labels"]["service"] in service)]


def _workers(reports: Iterable[WorkerReport], names: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    for report in sorted(reports, key=lambda report: report.replica):
        version = report.version[:_DIGITS]
        labels = {"model": names.get(report.version, version), "version": version}
        yield _target("worker", report.metrics, node=report.node, replica=report.replica, **labels)


def _nodes(reports: Iterable[NodeReport]) -> Iterable[dict[str, Any]]:
    for report in sorted(reports, key=lambda report: report.node):
        yield _target("node", report.metrics, node=report.node)


def _target(service: Service, address: str, **labels: str) -> dict[str, Any]:
    return {"targets": [address], "labels": {"service": service, **labels}}
