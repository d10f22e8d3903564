"""docs/metrics.md and the code have the same metrics, with the same types and descriptions."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from services.gateway.metrics import Metrics as GatewayMetrics
from services.node.metrics import Metrics as NodeMetrics
from services.node.processes import ProcessRuntime
from services.node.store import Store
from services.registry.metrics import Metrics as RegistryMetrics
from services.worker.metrics import Metrics as WorkerMetrics
from tests.scraping import Documented, documented


def registered(registry: CollectorRegistry) -> dict[str, Documented]:
    """Without labels: a family without samples does not have them."""
    found = {}
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = Documented(family.type, frozenset(), family.documentation)
    return found


def test_the_page_matches_the_code(tmp_path: Path) -> None:
    node = NodeMetrics()
    store = Store(tmp_path / "store")
    node.add_collectors(store, ProcessRuntime(tmp_path / "workers", environment={}, drain_s=1), lambda: ())
    services = (GatewayMetrics(), WorkerMetrics(slots=1), RegistryMetrics(), node)
    code = {name: row for metrics in services for name, row in registered(metrics.registry).items()}
    store.close()
    page = {name: row._replace(labels=frozenset()) for name, row in documented().items()}
    assert sorted(page) == sorted(code)
    assert page == code


def test_each_metric_is_exported_by_one_service() -> None:
    names = [
        name
        for metrics in (GatewayMetrics(), WorkerMetrics(slots=1), RegistryMetrics(), NodeMetrics())
        for name in registered(metrics.registry)
    ]
    assert len(names) == len(set(names))
