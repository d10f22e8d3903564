"""The gateway's metrics (docs/metrics.md). Requests are counted in tallies, by services.gateway.observation; what is rare, in the
metrics of prometheus-client, by whoever sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from services.gateway.tallies import BOUNDS_S, Distribution, ModelTally, TeamTally
from services.protocol.errors import BY_CODE, CorralError, Unavailable

#: Why a claim may have to be taken over.
CAUSES = ("lost", "broken_off", "handed_over", "gap")
#: Between two looks at how late the event loop is.
LAG_S = 0.1


class Metrics:
    """Of one gateway. Its event loop writes. What may be counted is there from the beginning where that is known: a counter that appears
    with 1 has not risen, to Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: dict[str, ModelTally] = {}
        self._teams: dict[tuple[str, str], TeamTally] = {}
        self.registry.register(_TallyCollector(self._models, self._teams))
        self.refusals = Counter(
            "corral_refusals",
            "Requests of any kind that were turned away, by the error's code: all that is answered with a 4xx status or 503.",
            ["reason"],
            registry=self.registry,
        )
        self.failovers = Counter(
            "corral_failovers",
            "Claims that another worker goes on with, because theirs was lost, broke off (broken_off), drains (handed_over), or left "
            "events out (gap).",
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
            "By how much the event loop was late for a timer.",
            buckets=BOUNDS_S,
            registry=self.registry,
        )
        self._connected = Gauge("corral_gateway_redis_connected", "1 while Redis answers, otherwise 0.", registry=self.registry)

    def model(self, name: str) -> ModelTally:
        tally = self._models.get(name)
        return tally or self._models.setdefault(name, ModelTally())

    def team(self, model: str, team: str) -> TeamTally:
        tally = self._teams.get((model, team))
        return tally or self._teams.setdefault((model, team), TeamTally())

    def show_connection(self, connected: Callable[[], bool]) -> None:
        self._connected.set_function(lambda: float(connected()))

    async def watch_lag(self) -> None:
        """For ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_S
            await asyncio.sleep(LAG_S)
            self._loop_lag.observe(max(0.0, loop.time() - due))


def is_refusal(error: CorralError | type[CorralError]) -> bool:
    """The platform will not do it, and says so; what it could not bring to its end is something else."""
    return error.status < 500 or error.status == Unavailable.status


class _TallyCollector:
    """Turns the tallies into samples when they are asked for."""

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
        "Requests for inference that have ended: answered, failed, expired (no worker began in time), refused (not let in) or "
        "cancelled (the client left).",
        labels=["model", "team", "outcome"],
    )
    prompt = CounterMetricFamily(
        "corral_prompt_tokens", "Tokens of prompts that got a slot, cached ones included.", labels=["model", "team"]
    )
    cached = CounterMetricFamily("corral_cached_tokens", "Tokens of prompts that a slot still held.", labels=["model", "team"])
    completion = CounterMetricFamily(
        "corral_completion_tokens", "Tokens that were generated, counted as they are handed on.", labels=["model", "team"]
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
        "corral_requests_in_flight", "Requests that were let in and have not ended.", labels=["model"]
    )
    cancellations = CounterMetricFamily(
        "corral_cancellations", "Requests whose client left while they were waiting or running.", labels=["model", "phase"]
    )
    for model, tally in models:
        in_flight.add_metric([model], tally.in_flight)
        for phase, count in tally.cancelled.items():
            cancellations.add_metric([model, phase], count)
    return iter((in_flight, cancellations))


def _durations(models: list[tuple[str, ModelTally]]) -> Iterator[Metric]:
    yield _histogram(
        "corral_queue_wait_seconds",
        "From admission until a worker has a slot for the request.",
        ["model", "priority"],
        (([model, priority], waits) for model, tally in models for priority, waits in list(tally.queue_wait.items())),
    )
    yield _histogram(
        "corral_time_to_first_token_seconds",
        "From the request's arrival until its first token is handed on.",
        ["model"],
        (([model], tally.first_token) for model, tally in models),
    )
    yield _histogram(
        "corral_inter_token_seconds",
        "Between two parts of an answer; a part holds what has arrived since the one before, mostly one token of each choice.",
        ["model"],
        (([model], tally.inter_token) for model, tally in models),
    )
    yield _histogram(
        "corral_request_duration_seconds",
        "From the arrival of a request that was answered to its end.",
        ["model"],
        (([model], tally.duration) for model, tally in models),
    )
    yield _histogram(
        "corral_prefill_seconds",
        "In the engine, from the claim to the first token.",
        ["model"],
        (([model], tally.prefill) for model, tally in models),
    )
    yield _histogram(
        "corral_decode_seconds",
        "In the engine, from the first token to the last.",
        ["model"],
        (([model], tally.decode) for model, tally in models),
    )


def _histogram(name: str, text: str, labels: list[str], rows: Iterable[tuple[list[str], Distribution]]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, distribution in rows:
        family.add_metric(values, buckets=distribution.buckets(), sum_value=distribution.sum_s)
    return family
