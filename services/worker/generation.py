"""One claimed request inside the worker, from its slot to its terminal event. Only the engine thread touches it."""

from __future__ import annotations

import time

from services.protocol.errors import CorralError
from services.protocol.messages import Event, Failed, Finished, FinishReason, Frame, GenerateRequest, Started, Timings, Usage
from services.worker.engine.scheduler import SampledToken
from services.worker.engine.sequence import Sequence
from services.worker.output import OutputPipeline


class Generation:
    """Turns what the engine samples into numbered events; after a terminal event it has nothing more to say."""

    def __init__(self, request: GenerateRequest, epoch: int, sequence: Sequence, output: OutputPipeline) -> None:
        self.request = request
        self.sequence = sequence
        self._epoch = epoch
        self._output = output
        self._seq = 0
        self._begun_ns = time.monotonic_ns()
        self._first_token_ns: int | None = None

    def started(self) -> Started:
        sequence = self.sequence
        prompt_ids = tuple(sequence.tokens[: sequence.num_prompt_tokens]) if self.request.return_prompt_ids else ()
        return Started(
            self.request.id, self._epoch, self._next_seq(), sequence.num_prompt_tokens, sequence.num_cached, prompt_ids
        )

    def advance(self, sampled: SampledToken) -> list[Event]:
        """The events of one step. Where the last is a terminal one but the engine goes on, a stop string was met."""
        if self._first_token_ns is None:
            self._first_token_ns = time.monotonic_ns()
        if sampled.token is None:
            return [*self._released(), self.finished(FinishReason.STOP)]
        delta = self._output.push(sampled.token)
        frame = Frame(self.request.id, self._epoch, self._next_seq(), (sampled.token,), delta.text)
        if delta.stopped:
            return [frame, self.finished(FinishReason.STOP)]
        if sampled.finish_reason is not None:
            return [frame, *self._released(), self.finished(sampled.finish_reason)]
        return [frame]

    def finished(self, reason: FinishReason) -> Finished:
        now = time.monotonic_ns()
        first = self._first_token_ns or now
        sequence = self.sequence
        return Finished(
            self.request.id,
            self._epoch,
            self._next_seq(),
            (reason,),
            Usage(sequence.num_prompt_tokens, sequence.num_cached, sequence.num_completion_tokens),
            Timings(prefill_ns=first - self._begun_ns, decode_ns=now - first),
        )

    def failed(self, error: CorralError) -> Failed:
        return Failed(self.request.id, self._epoch, self._next_seq(), error.code, error.message)

    def _released(self) -> list[Event]:
        text = self._output.flush().text
        return [Frame(self.request.id, self._epoch, self._next_seq(), (), text)] if text else []

    def _next_seq(self) -> int:
        seq, self._seq = self._seq, self._seq + 1
        return seq
