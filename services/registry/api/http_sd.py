"""GET /http_sd: everything that serves metrics, in the format of Prometheus's HTTP service discovery."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from services.protocol.reports import NodeReport, WorkerReport
from services.registry.api.dependencies import AppStateDep
from services.registry.database import catalog

router = APIRouter()

Service = Literal["worker", "node", "gateway", "registry"]
_DIGITS = 12


@router.get("/http_sd")
async def http_sd(state: AppStateDep, service: Annotated[list[Service] | None, Query()] = None) -> list[dict[str, Any]]:
    """The targets of these services, or of all. A registry lists only itself, not other registry processes."""
    async with state.database.snapshot() as session:
        names = await catalog.display_names(session)
    found = [
        *_workers(await state.queue.workers(), names),
        *_nodes(await state.nodes.read()),
        *(_target("gateway", address) for address in await state.gateways.metrics()),
        _target("registry", state.metrics_address),
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
