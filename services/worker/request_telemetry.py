"""Per-request telemetry: metrics, log lines at the claim and at the end, and a trace span below the gateway's.

Only the worker's event loop uses it.
"""

from __future__ import annotations

import time

from services.protocol.messages import Claim, Event, Failed, Finished
from services.telemetry.logs import log_event
from services.telemetry.tracing import Span, Tracer
from services.worker.metrics import Metrics

#: Fewer cached tokens do not count as a cached prefix: every used slot holds the first tokens of the chat template, and the
#: queue does not track prefixes that short.
MIN_REUSED_TOKENS = 32


class Observer:
    """`tracer` is None if tracing is off."""

    def __init__(self, metrics: Metrics, tracer: Tracer | None, *, worker: str, replica: str) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._worker = worker
        self._replica = replica
        self._predicted: dict[tuple[str, int], bool] = {}
        self._spans: dict[tuple[str, int], Span] = {}

    def claimed(self, claim: Claim) -> None:
        request, resumed = claim.request, bool(claim.committed)
        self._metrics.claims.labels("yes" if resumed else "no").inc()
        self._predicted[request.id, claim.epoch] = claim.held_bytes > 0
        log_event("request claimed", request.id, epoch=claim.epoch, worker=self._worker, replica=self._replica, resumed=resumed)
        if self._tracer is not None:
            attributes: dict[str, str | int | float | bool] = {
                "corral.request": request.id,
                "corral.epoch": claim.epoch,
                "corral.replica": self._replica,
            }
            span = self._tracer.begin("work", side="consumer", parent=request.traceparent, attributes=attributes)
            self._spans[request.id, claim.epoch] = span

    def ended(self, event: Event) -> None:
        """`event` is the terminal event of the claim."""
        reason = _reason(event)
        self._metrics.ends.labels(reason).inc()
        predicted = self._predicted.pop((event.request, event.epoch), False)
        if isinstance(event, Finished) and event.usage.prompt_tokens:
            self._metrics.count_prefix(predicted=predicted, actual=event.usage.cached_tokens >= MIN_REUSED_TOKENS)
        log_event("request left", event.request, epoch=event.epoch, worker=self._worker, reason=reason)
        span = self._spans.pop((event.request, event.epoch), None)
        if span is not None:
            if isinstance(event, Finished):
                _add_phase_spans(span, event)
            span.end(error=reason if isinstance(event, Failed) else "", attributes={"corral.reason": reason})


def _reason(event: Event) -> str:
    match event:
        case Finished():
            return str(event.reasons[0])
        case Failed():
            return "failed"
        case _:
            return "handed_over"


def _add_phase_spans(span: Span, finished: Finished) -> None:
    """Adds the spans of prefill and decode. Only their durations are known, so decode is assumed to end now."""
    ended_ns = time.time_ns()
    first_token_ns = ended_ns - finished.timings.decode_ns
    span.child("prefill", first_token_ns - finished.timings.prefill_ns, first_token_ns)
    span.child("decode", first_token_ns, ended_ns)
