"""One claimed request inside the worker, from its slot to its terminal event. Only the engine thread touches it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from services.protocol.errors import CorralError
from services.protocol.messages import (
    ChosenLogprob,
    Committed,
    Event,
    Failed,
    Finished,
    FinishReason,
    Frame,
    GenerateRequest,
    HandedOver,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from services.worker.engine.grammar import Matcher
from services.worker.engine.sampling import Sampled
from services.worker.engine.scheduler import SampledToken
from services.worker.engine.sequence import Sequence
from services.worker.output import Delta, OutputPipeline


class Choice:
    """One of a request's answers. `reason` is None until it has ended."""

    def __init__(self, sequence: Sequence, output: OutputPipeline, matcher: Matcher | None) -> None:
        self.sequence = sequence
        self.output = output
        self.reason: FinishReason | None = None
        self._matcher = matcher

    @property
    def failure(self) -> CorralError | None:
        """Why the answer cannot match what it has to."""
        return self._matcher.failure if self._matcher else None

    def resume(self, committed: Committed, *, exactly: bool) -> None:
        """Puts sequence and pipeline where another worker left them. What they release on the way, the client has."""
        self.reason = committed.reason
        self.sequence.resume(committed.token_ids, exactly=exactly and committed.reason is None)
        if self.sequence.replay:
            return
        for token in committed.token_ids:
            self.output.push(token)

    def push(self, token: int) -> Delta:
        delta = self.output.push(token)
        if delta.stopped:
            self.end(FinishReason.STOP)
        return delta

    def end(self, reason: FinishReason) -> None:
        calls = reason is FinishReason.STOP and self.output.saw_tool_calls
        self.reason = FinishReason.TOOL_CALLS if calls else reason


class Generation:
    """Turns what the engine samples into numbered events; after a terminal event it has nothing more to say.

    `token_text` gives the bytes of a token as logprobs show it.
    """

    def __init__(
        self, request: GenerateRequest, epoch: int, choices: list[Choice], *, token_text: Callable[[int], bytes]
    ) -> None:
        self.request = request
        self.choices = choices
        self._epoch = epoch
        self._token_text = token_text
        self._seq = 0
        self._begun_ns = time.monotonic_ns()
        self._first_token_ns: int | None = None

    @property
    def is_over(self) -> bool:
        return all(choice.reason for choice in self.choices)

    def started(self) -> list[Event]:
        """Once, with the first slot that it gets; nothing after that."""
        if self._seq:
            return []
        first = self.choices[0].sequence
        prompt_ids = tuple(first.tokens[: first.num_prompt_tokens]) if self.request.return_prompt_ids else ()
        cached = first.num_cached or 0
        return [Started(self.request.id, self._epoch, self._next_seq(), first.num_prompt_tokens, cached, prompt_ids)]

    def advance(self, choice: Choice, result: SampledToken) -> list[Event]:
        """The events of one step. Where a choice has its reason but the engine goes on with its sequence, a stop string was met."""
        if self._first_token_ns is None:
            self._first_token_ns = time.monotonic_ns()
        events: list[Event] = []
        if not result.ends_text:
            token = result.sampled.token
            delta = choice.push(token)
            if not result.replayed:
                events.append(self._frame(choice, delta, (token,), self._logprobs(result.sampled)))
        if choice.reason is None and result.finish_reason is not None:
            tail = choice.output.flush()
            choice.end(result.finish_reason)
            if tail.text or tail.reasoning or tail.tool_calls:
                events.append(self._frame(choice, tail))
        if self.is_over:
            events.append(self.finished())
        elif choice.reason is not None and not _tells_end(events):
            events.append(self._frame(choice, Delta("")))
        return events

    def aborted(self) -> Finished:
        for choice in self.choices:
            choice.reason = FinishReason.ABORT
        return self.finished()

    def finished(self) -> Finished:
        """Every choice has ended. The first choice paid for the prompt; what the others shared with it costs nothing."""
        now = time.monotonic_ns()
        first_token_ns = self._first_token_ns or now
        first = self.choices[0].sequence
        usage = Usage(first.num_prompt_tokens, first.num_cached or 0, sum(one.sequence.num_generated for one in self.choices))
        return Finished(
            self.request.id,
            self._epoch,
            self._next_seq(),
            tuple(choice.reason or FinishReason.LENGTH for choice in self.choices),
            usage,
            Timings(prefill_ns=first_token_ns - self._begun_ns, decode_ns=now - first_token_ns),
        )

    def handed_over(self) -> HandedOver:
        return HandedOver(self.request.id, self._epoch, self._next_seq())

    def failed(self, error: CorralError) -> Failed:
        return Failed(self.request.id, self._epoch, self._next_seq(), error.code, error.message)

    def _frame(
        self, choice: Choice, delta: Delta, token_ids: tuple[int, ...] = (), logprobs: Iterable[ChosenLogprob] = ()
    ) -> Frame:
        return Frame(
            self.request.id,
            self._epoch,
            self._next_seq(),
            token_ids,
            delta.text,
            choice=self.choices.index(choice),
            reasoning=delta.reasoning,
            tool_calls=delta.tool_calls,
            logprobs=tuple(logprobs),
            reason=choice.reason,
        )

    def _logprobs(self, sampled: Sampled) -> list[ChosenLogprob]:
        if sampled.logprob is None:
            return []
        top = tuple(TokenLogprob(self._token_text(token), logprob) for token, logprob in sampled.top)
        return [ChosenLogprob(self._token_text(sampled.token), sampled.logprob, top)]

    def _next_seq(self) -> int:
        seq, self._seq = self._seq, self._seq + 1
        return seq


def _tells_end(events: list[Event]) -> bool:
    return bool(events) and isinstance(events[-1], Frame) and events[-1].reason is not None
