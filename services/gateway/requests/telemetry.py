"""Per-request telemetry: metrics, start and end log lines, and a trace span.

Admission starts an Observation, and the response reports to it what the client received. Both run on the gateway's event loop.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec

from services.gateway.metrics import Metrics
from services.protocol.errors import CorralError, DeadlineExceeded
from services.protocol.messages import EmbedRequest, Event, Finished, GenerateRequest, Request, Started
from services.protocol.prompts import ChatPrompt
from services.protocol.routes import LOCAL_CALLER, Caller
from services.protocol.waiting import Priority
from services.telemetry.logs import access, log_event
from services.telemetry.tracing import Span, Tracer

TRACE_HEADER = "traceparent"


class Observer:
    """Starts an Observation for each request. Without a `tracer` there are no spans. `log_prompts` adds prompts to the log."""

    def __init__(self, metrics: Metrics, tracer: Tracer | None = None, *, log_prompts: bool = False) -> None:
        self.metrics = metrics
        self._tracer = tracer
        self._log_prompts = log_prompts

    def begin(
        self,
        request: Request,
        *,
        model: str,
        caller: Caller,
        priority: Priority,
        headers: Mapping[str, str],
        arrived_s: float,
    ) -> Observation:
        """`arrived_s` is a time.monotonic() value."""
        team = caller.team or caller.name
        span = None
        if self._tracer is not None:
            attributes = {"gen_ai.request.model": model, "corral.request": request.id, "corral.team": team}
            name = f"{_operation(request)} {model}"
            span = self._tracer.begin(name, side="server", parent=headers.get(TRACE_HEADER, ""), attributes=attributes)
        asked = _prompt(request) if self._log_prompts else None
        log_event("request arrived", request.id, model=model, team=team, priority=priority, prompt=asked, trace=_trace(span))
        return Observation(
            self.metrics,
            request.id,
            title=f"{_operation(request)} {model}" + ("" if caller.id == LOCAL_CALLER.id else f" for {caller.name}"),
            model=model,
            team=team,
            priority=priority,
            arrived_s=arrived_s,
            span=span,
        )


class Observation:
    """The telemetry of one request. `title` describes it in the access log.

    Ends with exactly one call of `refused`, `answered`, `failed` or `cancelled`.
    """

    def __init__(
        self,
        metrics: Metrics,
        request: str,
        *,
        title: str,
        model: str,
        team: str,
        priority: Priority,
        arrived_s: float,
        span: Span | None,
    ) -> None:
        self._request = request
        self._title = title
        self._model = metrics.model(model)
        self._team = metrics.team(model, team)
        self._priority = priority
        self._span = span
        self._arrived_s = arrived_s
        self._admitted_s = arrived_s
        self._last_s = arrived_s
        self._tokens = 0
        self._started: Started | None = None
        self._finished: Finished | None = None

    @property
    def traceparent(self) -> str:
        """The trace context for the worker's span; empty if there is no span."""
        return self._span.traceparent if self._span else ""

    def admitted(self) -> None:
        self._admitted_s = time.monotonic()
        self._model.in_flight += 1

    def refused(self, error: CorralError) -> None:
        """The request was not admitted."""
        self._end("rejected" if _is_the_callers(error) else "refused", error)

    def delivered(self, events: Sequence[Event], tokens: int) -> None:
        """Records the events that the client is about to receive. `tokens` is the total generated so far."""
        now = time.monotonic()
        if self._started is None and isinstance(events[0], Started):
            self._start(events[0], now)
        if tokens > self._tokens:
            waited = self._model.inter_token if self._tokens else self._model.first_token
            waited.observe(now - self._last_s)
            self._team.completion_tokens += tokens - self._tokens
            self._tokens, self._last_s = tokens, now
        last = events[-1]
        if isinstance(last, Finished):
            self._finished = last

    def answered(self) -> None:
        self._model.in_flight -= 1
        self._model.duration.observe(time.monotonic() - self._arrived_s)
        if self._finished is not None:
            self._model.prefill.observe(self._finished.timings.prefill_ns / 1e9)
            self._model.decode.observe(self._finished.timings.decode_ns / 1e9)
        self._end("answered")

    def failed(self, error: Exception) -> None:
        """The request was admitted, but ended with this error before or during its answer."""
        self._model.in_flight -= 1
        if isinstance(error, DeadlineExceeded):
            self._end("expired", error)
        else:
            self._end("rejected" if _is_the_callers(error) else "failed", error)

    def cancelled(self) -> None:
        """The client disconnected."""
        self._model.in_flight -= 1
        self._model.cancelled["running" if self._started else "waiting"] += 1
        self._end("cancelled")

    def _start(self, started: Started, now: float) -> None:
        self._started = started
        waited_s = now - self._admitted_s
        self._model.queue_wait[self._priority].observe(waited_s)
        self._team.prompt_tokens += started.prompt_tokens
        self._team.cached_tokens += started.cached_tokens
        if self._span is not None:
            started_ns = time.time_ns()
            self._span.child("queue", started_ns - int(waited_s * 1e9), started_ns)

    def _end(self, outcome: str, error: Exception | None = None) -> None:
        self._team.ended[outcome] += 1
        code = None if error is None else error.code if isinstance(error, CorralError) else CorralError.code
        started = self._started
        seconds = time.monotonic() - self._arrived_s
        access.info(
            "%s: %s, %d prompt and %d answer tokens, %.2f s",
            *(
                self._title,
                f"{outcome}: {code}" if code else outcome,
                started.prompt_tokens if started else 0,
                self._tokens,
                seconds,
            ),
        )
        log_event(
            "request ended",
            self._request,
            outcome=outcome,
            code=code,
            seconds=round(seconds, 6),
            prompt_tokens=started and started.prompt_tokens,
            cached_tokens=started and started.cached_tokens,
            completion_tokens=self._tokens,
            trace=_trace(self._span),
        )
        if self._span is not None:
            used = {"gen_ai.usage.input_tokens": started.prompt_tokens if started else 0}
            used["gen_ai.usage.output_tokens"] = self._tokens
            self._span.end(error=code or "", attributes={"corral.outcome": outcome, **used})


def _operation(request: Request) -> str:
    if isinstance(request, GenerateRequest):
        return "chat" if isinstance(request.prompt, ChatPrompt) else "text_completion"
    return "embeddings" if isinstance(request, EmbedRequest) else "rerank"


def _prompt(request: Request) -> object:
    """The prompt or inputs, as JSON-compatible values."""
    match request:
        case GenerateRequest():
            return msgspec.to_builtins(request.prompt, str_keys=True)
        case EmbedRequest():
            return request.inputs
        case _:
            return [request.query, *request.documents]


def _trace(span: Span | None) -> str | None:
    """The trace id from `00-<trace>-<span>-<flags>`."""
    return span.traceparent.split("-")[1] if span and span.traceparent else None


def _is_the_callers(error: Exception) -> bool:
    """Whether the request, its key or the key's limits caused the error. Such errors don't count against the cluster's error
    budget."""
    return isinstance(error, CorralError) and error.status < 500
