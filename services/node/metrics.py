"""The node agent's metrics (docs/metrics.md). The agent counts its pulls; the machine, the store and the workers are looked at when they are
asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.node.gpus import Gpu, Gpus
from services.node.runtime import Runtime
from services.node.store import Store

_PULL_BOUNDS_S = (1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


class Metrics:
    """Of one agent. Job threads write."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        pulls = Counter("corral_node_pulls", "Pulls that ended: succeeded or failed.", ["outcome"], registry=registry)
        self._succeeded, self._failed = (pulls.labels(outcome) for outcome in ("succeeded", "failed"))
        self._pull_seconds = Histogram(
            "corral_node_pull_seconds", "How long a pull took that succeeded.", buckets=_PULL_BOUNDS_S, registry=registry
        )
        self._pulled_bytes = Counter(
            "corral_node_pulled_bytes", "Sizes of what pulls have brought, counted at their end.", registry=registry
        )
        registry.register(_GpuCollector(Gpus().look))

    def show(self, store: Store, runtime: Runtime, jobs: Callable[[], tuple[str, ...]]) -> None:
        """Asked for at each scrape, from its thread."""
        self.registry.register(_MachineCollector(runtime))
        self.registry.register(_AgentCollector(store, runtime, jobs))

    def pulled(self, *, seconds: float, size: int) -> None:
        """A pull has succeeded; `size` in bytes."""
        self._succeeded.inc()
        self._pull_seconds.observe(seconds)
        self._pulled_bytes.inc(size)

    def pull_failed(self) -> None:
        self._failed.inc()


class _MachineCollector:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        memory = self._runtime.memory()
        yield _gauge("corral_node_cpu_cores", "Cores that workers may use.", self._runtime.cpus())
        yield CounterMetricFamily(
            "corral_node_cpu_busy_seconds",
            "Time of all the machine's cores that was not idle.",
            value=_busy_seconds(psutil.cpu_times()._asdict()),
        )
        yield _gauge("corral_node_memory_bytes", "Memory that workers may take together.", memory.total)
        yield _gauge("corral_node_memory_available_bytes", "Memory that can still be taken.", memory.available)


class _AgentCollector:
    def __init__(self, store: Store, runtime: Runtime, jobs: Callable[[], tuple[str, ...]]) -> None:
        self._store = store
        self._runtime = runtime
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        blobs = self._store.blobs()
        total, free = _disk(self._store.root)
        yield _gauge("corral_node_disk_bytes", "Size of the volume that the store is on.", total)
        yield _gauge("corral_node_disk_free_bytes", "What is free on it.", free)
        yield _gauge("corral_node_store_blobs", "Verified blobs in the store.", len(blobs))
        yield _gauge("corral_node_store_bytes", "Their sizes.", sum(blob.size for blob in blobs))
        yield _gauge("corral_node_workers", "Workers that run.", len(self._runtime.running()))
        yield _gauge("corral_node_jobs", "Jobs that the agent is working on.", len(self._jobs()))


class _GpuCollector:
    def __init__(self, look: Callable[[], list[Gpu]]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        gpus = self._look()
        info = GaugeMetricFamily("corral_node_gpu_info", "Always 1; what the accelerator is called.", labels=["gpu", "name"])
        for gpu in gpus:
            info.add_metric([str(gpu.number), gpu.name], 1)
        yield info
        yield _of_gpus(
            "corral_node_gpu_utilization_ratio",
            "Part of the time in which a kernel ran.",
            [(gpu, gpu.utilization) for gpu in gpus],
        )
        yield _of_gpus("corral_node_gpu_memory_bytes", "Memory of the accelerator.", [(gpu, gpu.memory_total) for gpu in gpus])
        yield _of_gpus(
            "corral_node_gpu_memory_used_bytes", "What of it is taken, by anyone.", [(gpu, gpu.memory_used) for gpu in gpus]
        )
        yield _of_gpus("corral_node_gpu_power_watts", "Power that it draws.", [(gpu, gpu.power) for gpu in gpus])
        yield _of_gpus(
            "corral_node_gpu_temperature_celsius", "Temperature of the chip.", [(gpu, gpu.temperature) for gpu in gpus]
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _of_gpus(name: str, text: str, values: list[tuple[Gpu, float | None]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["gpu"])
    for gpu, value in values:
        if value is not None:
            family.add_metric([str(gpu.number)], value)
    return family


def _busy_seconds(times: dict[str, float]) -> float:
    """What a guest took is in its host's time too."""
    idle = sum(times.get(kind, 0.0) for kind in ("idle", "iowait", "guest", "guest_nice"))
    return sum(times.values()) - idle


def _disk(root: Path) -> tuple[int, int]:
    usage = shutil.disk_usage(root)
    return usage.total, usage.free
