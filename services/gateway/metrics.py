"""The gateway's metrics, described in docs/metrics.md.

Per-request numbers are counted in tallies, by services.gateway.requests.telemetry. Rare events use prometheus-client's metrics
directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from services.gateway.requests.tallies import BOUNDS_S, Distribution, ModelTally, TeamTally
from services.protocol.errors import BY_CODE, CorralError, Unavailable

#: Why a request may move from one worker to another.
CAUSES = ("lost", "broken_off", "handed_over", "gap")
#: Interval between two measurements of the event loop's lag.
LAG_CHECK_INTERVAL_S = 0.1


class Metrics:
    """The metrics of one gateway, written by its event loop.

    Counters with known labels start at 0: Prometheus sees no increase in a counter that first appears with the value 1.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: dict[str, ModelTally] = {}
        self._teams: dict[tuple[str, str], TeamTally] = {}
        self.registry.register(_TallyCollector(self._models, self._teams))
        self.refusals = Counter(
            "corral_refusals",
            "Requests of any kind that were answered with a 4xx status or 503, by error code.",
            ["reason"],
            registry=self.registry,
        )
        self.failovers = Counter(
            "corral_failovers",
            "Claims that another worker took over, because the first one was lost, broke off (broken_off), "
            "drained (handed_over), or omitted events (gap).",
            ["cause"],
            registry=self.registry,
        )
        for error in BY_CODE.values():
            if is_refusal(error):
                self.refusals.labels(error.code)
        for cause in CAUSES:
            self.failovers.labels(cause)
        self._loop_lag = Histogram(
            "corral_gateway_loop_lag_seconds",
            "How late the event loop ran a timer.",
            buckets=BOUNDS_S,
            registry=self.registry,
        )
        self._connected = Gauge(
            "corral_gateway_redis_connected", "1 while Redis answers and accepts writes, otherwise 0.", registry=self.registry
        )

    def model(self, name: str) -> ModelTally:
        tally = self._models.get(name)
        return tally or self._models.setdefault(name, ModelTally())

    def team(self, model: str, team: str) -> TeamTally:
        tally = self._teams.get((model, team))
        return tally or self._teams.setdefault((model, team), TeamTally())

    def show_connection(self, connected: Callable[[], bool]) -> None:
        self._connected.set_function(lambda: float(connected()))

    async def watch_lag(self) -> None:
        """Measures the event loop's lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_CHECK_INTERVAL_S
            await asyncio.sleep(LAG_CHECK_INTERVAL_S)
            self._loop_lag.observe(max(0.0, loop.time() - due))


def is_refusal(error: CorralError | type[CorralError]) -> bool:
    """Whether the error is a refusal (4xx or 503), rather than a failure to finish what was accepted."""
    return error.status < 500 or error.status == Unavailable.status


class _TallyCollector:
    """Converts the tallies to samples on each scrape."""

    def __init__(self, models: dict[str, ModelTally], teams: dict[tuple[str, str], TeamTally]) -> None:
        self._models = models
        self._teams = teams

    def collect(self) -> Iterator[Metric]:
        models, teams = list(self._models.items()), list(self._teams.items())
        yield from _by_team(teams)
        yield from _by_model(models)
        yield from _durations(models)


def _by_team(teams: list[tuple[tuple[str, str], TeamTally]]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "corral_requests",
        "Inference requests that ended: answered, failed, expired (no worker started it in time), rejected (a "
        "bad request, or a caller over its limit: a 4xx status), refused (the cluster has no capacity or a "
        "part of it is down: 503) or cancelled (the client disconnected).",
        labels=["model", "team", "outcome"],
    )
    prompt = CounterMetricFamily(
        "corral_prompt_tokens", "Prompt tokens of requests that got a slot, cached ones included.", labels=["model", "team"]
    )
    cached = CounterMetricFamily(
        "corral_cached_tokens", "Prompt tokens that were already in the KV cache.", labels=["model", "team"]
    )
    completion = CounterMetricFamily(
        "corral_completion_tokens", "Generated tokens, counted when they are sent to the client.", labels=["model", "team"]
    )
    for labels, tally in teams:
        for outcome, count in tally.ended.items():
            requests.add_metric([*labels, outcome], count)
        prompt.add_metric(labels, tally.prompt_tokens)
        cached.add_metric(labels, tally.cached_tokens)
        completion.add_metric(labels, tally.completion_tokens)
    return iter((requests, prompt, cached, completion))


def _by_model(models: list[tuple[str, ModelTally]]) -> Iterator[Metric]:
    in_flight = GaugeMetricFamily(
        "corral_requests_in_flight", "Requests that were admitted and have not ended.", labels=["model"]
    )
    cancellations = CounterMetricFamily(
        "corral_cancellations",
        "Requests whose client disconnected while they were waiting or running.",
        labels=["model", "phase"],
    )
    for model, tally in models:
        in_flight.add_metric([model], tally.in_flight)
        for phase, count in tally.cancelled.items():
            cancellations.add_metric([model, phase], count)
    return iter((in_flight, cancellations))


def _durations(models: list[tuple[str, ModelTally]]) -> Iterator[Metric]:
    yield _histogram(
        "corral_queue_wait_seconds",
        "Time from admission until the request has a slot on a worker.",
        ["model", "priority"],
        (([model, priority], waits) for model, tally in models for priority, waits in list(tally.queue_wait.items())),
    )
    yield _histogram(
        "corral_time_to_first_token_seconds",
        "Time from the request's arrival until its first token is sent.",
        ["model"],
        (([model], tally.first_token) for model, tally in models),
    )
    yield _histogram(
        "corral_inter_token_seconds",
        "Time between two writes of an answer to its client; a write has the tokens that arrived since the previous one.",
        ["model"],
        (([model], tally.inter_token) for model, tally in models),
    )
    yield _histogram(
        "corral_request_duration_seconds",
        "Time from arrival to end, of requests that were answered.",
        ["model"],
        (([model], tally.duration) for model, tally in models),
    )
    yield _histogram(
        "corral_prefill_seconds",
        "Time from when the engine receives the request to the first token.",
        ["model"],
        (([model], tally.prefill) for model, tally in models),
    )
    yield _histogram(
        "corral_decode_seconds",
        "Time from the first token to the last, in the engine.",
        ["model"],
        (([model], tally.decode) for model, tally in models),
    )


def _histogram(name: str, text: str, labels: list[str], rows: Iterable[tuple[list[str], Distribution]]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, distribution in rows:
        family.add_metric(values, buckets=distribution.buckets(), sum_value=distribution.sum_s)
    return family
