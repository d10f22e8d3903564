"""What is told of each claimed request: counts, a line of the log at its claim and at its end, and its span, a part of the gateway's.

Only the worker's event loop calls it.
"""

from __future__ import annotations

import time

from services.protocol.logs import note
from services.protocol.messages import Claim, Event, Failed, Finished
from services.protocol.tracing import Span, Tracer
from services.worker.metrics import Metrics

#: A few tokens of a template are in every slot that was ever used, and so short a beginning the queue does not know.
WORTH_TOKENS = 32


class Observer:
    """`tracer` is None where nobody wants spans."""

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
        note("request claimed", request.id, epoch=claim.epoch, worker=self._worker, replica=self._replica, resumed=resumed)
        if self._tracer is not None:
            attributes: dict[str, str | int | float | bool] = {
                "corral.request": request.id,
                "corral.epoch": claim.epoch,
                "corral.replica": self._replica,
            }
            span = self._tracer.begin("work", side="consumer", parent=request.traceparent, attributes=attributes)
            self._spans[request.id, claim.epoch] = span

    def ended(self, event: Event) -> None:
        """With the claim's terminal event."""
        reason = _reason(event)
        self._metrics.ends.labels(reason).inc()
        predicted = self._predicted.pop((event.request, event.epoch), False)
        if isinstance(event, Finished) and event.usage.prompt_tokens:
            self._metrics.count_prefix(predicted=predicted, actual=event.usage.cached_tokens >= WORTH_TOKENS)
        note("request left", event.request, epoch=event.epoch, worker=self._worker, reason=reason)
        span = self._spans.pop((event.request, event.epoch), None)
        if span is not None:
            if isinstance(event, Finished):
                _tell_phases(span, event)
            span.end(error=reason if isinstance(event, Failed) else "", attributes={"corral.reason": reason})


def _reason(event: Event) -> str:
    match event:
        case Finished():
            return str(event.reasons[0])
        case Failed():
            return "failed"
        case _:
            return "handed_over"


def _tell_phases(span: Span, finished: Finished) -> None:
    """As long as they took, and as if the last had ended just now."""
    ended_ns = time.time_ns()
    first_token_ns = ended_ns - finished.timings.decode_ns
    span.child("prefill", first_token_ns - finished.timings.prefill_ns, first_token_ns)
    span.child("decode", first_token_ns, ended_ns)
