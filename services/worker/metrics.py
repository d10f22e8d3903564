"""The worker's metrics (docs/metrics.md). The engine thread calls `stepped`, the event loop everything else. Values that exist
elsewhere, like the number of requests, are read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.protocol.messages import FinishReason
from services.worker.engine.engine import Occupancy

_STEP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKEN_BOUNDS = tuple(2**power for power in range(13))
_SEQUENCE_BOUNDS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


class Metrics:
    """The metrics of one worker."""

    def __init__(self, *, slots: int) -> None:
        self.registry = registry = CollectorRegistry()
        self._occupancy = _OccupancyCollector()
        registry.register(self._occupancy)
        Gauge(
            "corral_worker_slots", "Slots of the replica: how many requests it answers at the same time.", registry=registry
        ).set(slots)
        self._threads = Gauge("corral_worker_threads", "CPU threads that compute the next batch.", registry=registry)
        self._requests = Gauge(
            "corral_worker_requests", "Requests that the worker has claimed and that have not ended.", registry=registry
        )
        self.claims = Counter(
            "corral_worker_claims",
            "Requests claimed; resumed (yes or no): another worker had generated a part of the answer.",
            ["resumed"],
            registry=registry,
        )
        self.ends = Counter(
            "corral_worker_ends",
            "Requests that ended on this worker, by the finish reason of their first choice, or as failed or handed_over.",
            ["reason"],
            registry=registry,
        )
        self._prefixes = Counter(
            "corral_worker_prefix_claims",
            "Prompts, by whether the queue predicted a cached prefix on this worker, and whether a slot actually "
            "had at least 32 of its tokens; yes or no.",
            ["predicted", "actual"],
            registry=registry,
        )
        for either in ("no", "yes"):
            self.claims.labels(either)
            for actual in ("no", "yes"):
                self._prefixes.labels(either, actual)
        for reason in (*FinishReason, "failed", "handed_over"):
            self.ends.labels(reason)
        self._steps = Histogram(
            "corral_worker_step_seconds",
            "Time to compute one batch, sampling included.",
            buckets=_STEP_BOUNDS_S,
            registry=registry,
        )
        self._batch_tokens = Histogram(
            "corral_worker_batch_tokens", "Tokens in a batch.", buckets=_TOKEN_BOUNDS, registry=registry
        )
        self._batch_sequences = Histogram(
            "corral_worker_batch_sequences", "Sequences in a batch.", buckets=_SEQUENCE_BOUNDS, registry=registry
        )
        computed = Counter(
            "corral_worker_computed_tokens",
            "Tokens computed, of prompts (prefill) or generated ones (decode).",
            ["phase"],
            registry=registry,
        )
        self._prefill, self._decode = computed.labels("prefill"), computed.labels("decode")
        memory = Gauge("corral_worker_memory_bytes", "Resident memory of the process.", registry=registry)
        memory.set_function(_resident_bytes)
        self._device_memory = Gauge(
            "corral_worker_device_memory_bytes", "Accelerator memory that loading the model took.", registry=registry
        )
        self._load = Gauge("corral_worker_load_seconds", "Time that the model took to load.", registry=registry)

    def loaded(self, *, seconds: float, device_memory_bytes: int) -> None:
        self._load.set(seconds)
        self._device_memory.set(device_memory_bytes)

    def set_sources(
        self, *, requests: Callable[[], int], occupancy: Callable[[], Occupancy | None], threads: Callable[[], int]
    ) -> None:
        """Sets the functions that return the current values. Each scrape calls them, from its own thread."""
        self._requests.set_function(requests)
        self._threads.set_function(threads)
        self._occupancy.read = occupancy

    def count_prefix(self, *, predicted: bool, actual: bool) -> None:
        """Counts one prompt: whether the queue expected a cached prefix, and whether a slot had one."""
        self._prefixes.labels("yes" if predicted else "no", "yes" if actual else "no").inc()

    def stepped(self, *, seconds: float, prefill: int, decode: int, sequences: int) -> None:
        """Records a batch that the engine computed."""
        self._steps.observe(seconds)
        self._batch_tokens.observe(prefill + decode)
        self._batch_sequences.observe(sequences)
        self._prefill.inc(prefill)
        self._decode.inc(decode)


class _OccupancyCollector:
    """Current use of slots and KV cells; no samples if nothing is kept between batches."""

    def __init__(self) -> None:
        self.read: Callable[[], Occupancy | None] = lambda: None

    def collect(self) -> Iterator[Metric]:
        now = self.read()
        busy = GaugeMetricFamily("corral_worker_busy_slots", "Slots with a running sequence.", labels=[])
        cells = GaugeMetricFamily("corral_worker_kv_tokens", "Size of the KV cache, in tokens.", labels=[])
        used = GaugeMetricFamily(
            "corral_worker_kv_used_tokens",
            "Cells of the KV cache in use: by running sequences (running), or kept for later prompts with the "
            "same prefix (kept).",
            labels=["state"],
        )
        preemptions = CounterMetricFamily(
            "corral_worker_preemptions", "Sequences that lost their slot because the KV cache was full.", labels=[]
        )
        if now is not None:
            busy.add_metric([], now.busy_slots)
            cells.add_metric([], now.cells)
            used.add_metric(["running"], now.running_cells)
            used.add_metric(["kept"], max(0, now.used_cells - now.running_cells))
            preemptions.add_metric([], now.preemptions)
        return iter((busy, cells, used, preemptions))


def _resident_bytes() -> float:
    return float(psutil.Process().memory_info().rss)
