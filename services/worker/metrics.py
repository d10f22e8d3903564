"""The worker's metrics (docs/metrics.md). The engine thread writes `stepped`, the event loop everything else; what can be looked at when it
is asked for is not counted at all."""

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
    """Of one worker."""

    def __init__(self, *, slots: int) -> None:
        self.registry = registry = CollectorRegistry()
        self._occupancy = _OccupancyCollector()
        registry.register(self._occupancy)
        Gauge("corral_worker_slots", "Slots that the replica has.", registry=registry).set(slots)
        self._requests = Gauge("corral_worker_requests", "Requests that were claimed and have not ended.", registry=registry)
        self.claims = Counter(
            "corral_worker_claims",
            "Requests that were claimed; resumed (yes or no): another worker had begun the answer.",
            ["resumed"],
            registry=registry,
        )
        self.ends = Counter(
            "corral_worker_ends",
            "Requests that ended here, by the finish reason of their first choice, or failed, or handed_over.",
            ["reason"],
            registry=registry,
        )
        self._prefixes = Counter(
            "corral_worker_prefix_claims",
            "Prompts by whether the queue believed that this worker holds their beginning, and whether a slot did, 32 tokens or more of "
            "it; yes or no.",
            ["predicted", "actual"],
            registry=registry,
        )
        for either in ("no", "yes"):
            self.claims.labels(either)
            for actual in ("no", "yes"):
                self._prefixes.labels(either, actual)
        for reason in (*FinishReason, "failed", "handed_over"):
            self.ends.labels(reason)
        self._steps = Histogram("corral_worker_step_seconds", "Computing one batch.", buckets=_STEP_BOUNDS_S, registry=registry)
        self._batch_tokens = Histogram(
            "corral_worker_batch_tokens", "Tokens in a batch.", buckets=_TOKEN_BOUNDS, registry=registry
        )
        self._batch_sequences = Histogram(
            "corral_worker_batch_sequences", "Sequences in a batch.", buckets=_SEQUENCE_BOUNDS, registry=registry
        )
        computed = Counter(
            "corral_worker_computed_tokens",
            "Tokens that were computed: of prompts (prefill) or sampled ones (decode).",
            ["phase"],
            registry=registry,
        )
        self._prefill, self._decode = computed.labels("prefill"), computed.labels("decode")
        memory = Gauge("corral_worker_memory_bytes", "Resident memory of the process.", registry=registry)
        memory.set_function(_resident_bytes)
        self._device_memory = Gauge(
            "corral_worker_device_memory_bytes", "What loading the model took of accelerators' memory.", registry=registry
        )
        self._load = Gauge("corral_worker_load_seconds", "How long the model took to load.", registry=registry)

    def loaded(self, *, seconds: float, device_memory_bytes: int) -> None:
        self._load.set(seconds)
        self._device_memory.set(device_memory_bytes)

    def show(self, *, requests: Callable[[], int], occupancy: Callable[[], Occupancy | None]) -> None:
        """Asked for at each scrape, from its thread."""
        self._requests.set_function(requests)
        self._occupancy.look = occupancy

    def count_prefix(self, *, predicted: bool, actual: bool) -> None:
        """Of a prompt that was computed, or of what of it had to be."""
        self._prefixes.labels("yes" if predicted else "no", "yes" if actual else "no").inc()

    def stepped(self, *, seconds: float, prefill: int, decode: int, sequences: int) -> None:
        """The engine has computed a batch."""
        self._steps.observe(seconds)
        self._batch_tokens.observe(prefill + decode)
        self._batch_sequences.observe(sequences)
        self._prefill.inc(prefill)
        self._decode.inc(decode)


class _OccupancyCollector:
    """What slots and cells hold now; no samples where nothing is kept between batches."""

    def __init__(self) -> None:
        self.look: Callable[[], Occupancy | None] = lambda: None

    def collect(self) -> Iterator[Metric]:
        now = self.look()
        busy = GaugeMetricFamily("corral_worker_busy_slots", "Slots in which a sequence runs.", labels=[])
        cells = GaugeMetricFamily("corral_worker_kv_tokens", "Tokens that the KV cache has cells for.", labels=[])
        used = GaugeMetricFamily(
            "corral_worker_kv_used_tokens",
            "Cells that are taken: by sequences that run (running), or kept for prompts that begin alike (kept).",
            labels=["state"],
        )
        preemptions = CounterMetricFamily(
            "corral_worker_preemptions", "Sequences that lost their slot for want of KV cells.", labels=[]
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
