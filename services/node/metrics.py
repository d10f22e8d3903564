"""The node agent's metrics (docs/metrics.md). Pulls are counted as they end; the machine, the store and the workers are read at
each scrape."""

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
    """The metrics of one agent. Written by job threads."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        pulls = Counter("corral_node_pulls", "Pulls that ended: succeeded or failed.", ["outcome"], registry=registry)
        self._succeeded, self._failed = (pulls.labels(outcome) for outcome in ("succeeded", "failed"))
        self._pull_seconds = Histogram(
            "corral_node_pull_seconds", "Time of a pull that succeeded.", buckets=_PULL_BOUNDS_S, registry=registry
        )
        self._pulled_bytes = Counter(
            "corral_node_pulled_bytes", "Bytes of the models that pulls fetched, counted when a pull ends.", registry=registry
        )
        registry.register(_GpuCollector(Gpus().read))

    def add_collectors(self, store: Store, runtime: Runtime, jobs: Callable[[], tuple[str, ...]]) -> None:
        """Adds the metrics of the machine, the store and the workers. They are read at each scrape, on its thread."""
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
            "Time that the machine's cores were busy, summed over all cores.",
            value=_busy_seconds(psutil.cpu_times()._asdict()),
        )
        yield _gauge("corral_node_memory_bytes", "Memory that all workers together may use.", memory.total)
        yield _gauge("corral_node_memory_available_bytes", "Memory that is still available to workers.", memory.available)


class _AgentCollector:
    def __init__(self, store: Store, runtime: Runtime, jobs: Callable[[], tuple[str, ...]]) -> None:
        self._store = store
        self._runtime = runtime
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        blobs = self._store.blobs()
        total, free = _disk(self._store.root)
        yield _gauge("corral_node_disk_bytes", "Size of the volume that the store is on.", total)
        yield _gauge("corral_node_disk_free_bytes", "Free space on that volume.", free)
        yield _gauge("corral_node_store_blobs", "Verified blobs in the store.", len(blobs))
        yield _gauge(
            "corral_node_store_bytes", "Total size of the verified blobs in the store.", sum(blob.size for blob in blobs)
        )
        yield _gauge("corral_node_workers", "Running workers.", len(self._runtime.running()))
        yield _gauge("corral_node_jobs", "Jobs that the agent is running.", len(self._jobs()))


class _GpuCollector:
    def __init__(self, read: Callable[[], list[Gpu]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        gpus = self._read()
        info = GaugeMetricFamily("corral_node_gpu_info", "Always 1; `name` is the accelerator's name.", labels=["gpu", "name"])
        for gpu in gpus:
            info.add_metric([str(gpu.number), gpu.name], 1)
        yield info
        yield _of_gpus(
            "corral_node_gpu_utilization_ratio",
            "Share of the time in which a kernel ran.",
            [(gpu, gpu.utilization) for gpu in gpus],
        )
        yield _of_gpus("corral_node_gpu_memory_bytes", "Memory of the accelerator.", [(gpu, gpu.memory_total) for gpu in gpus])
        yield _of_gpus(
            "corral_node_gpu_memory_used_bytes",
            "Memory of the accelerator in use, by any process.",
            [(gpu, gpu.memory_used) for gpu in gpus],
        )
        yield _of_gpus("corral_node_gpu_power_watts", "Power that the accelerator draws.", [(gpu, gpu.power) for gpu in gpus])
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
    """Guest time is left out: user time already includes it."""
    idle = sum(times.get(kind, 0.0) for kind in ("idle", "iowait", "guest", "guest_nice"))
    return sum(times.values()) - idle


def _disk(root: Path) -> tuple[int, int]:
    usage = shutil.disk_usage(root)
    return usage.total, usage.free
