"""A claimed request inside the worker, until its terminal event. Only the engine thread uses it."""

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
    """One of the answers to a request. `reason` is None until the answer ends."""

    def __init__(self, sequence: Sequence, output: OutputPipeline, matcher: Matcher | None) -> None:
        self.sequence = sequence
        self.output = output
        self.reason: FinishReason | None = None
        self._matcher = matcher

    @property
    def failure(self) -> CorralError | None:
        """The matcher's error, if the answer can no longer match its grammar."""
        return self._matcher.failure if self._matcher else None

    def resume(self, committed: Committed, *, exactly: bool) -> None:
        """Continues another worker's answer. The text of the committed tokens is dropped: the client already has it.

        If `exactly`, the engine replays the tokens one by one (see Sequence.resume).
        """
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


class RunningRequest:
    """Turns sampled tokens into numbered events, the last of which is a terminal event.

    `token_text` returns the bytes of a token as logprobs show them.
    """

    def __init__(
        self, request: GenerateRequest, epoch: int, choices: list[Choice], *, token_text: Callable[[int], bytes]
    ) -> None:
        self.request = request
        self.choices = choices
        self._epoch = epoch
        self._token_text = token_text
        self._seq = 0
        self._started_ns = time.monotonic_ns()
        self._first_token_ns: int | None = None

    @property
    def is_over(self) -> bool:
        return all(choice.reason for choice in self.choices)

    def started(self) -> list[Event]:
        """The Started event, when the request gets its first slot. Empty if other events came before."""
        if self._seq:
            return []
        first = self.choices[0].sequence
        prompt_ids = tuple(first.tokens[: first.num_prompt_tokens]) if self.request.return_prompt_ids else ()
        cached = first.num_cached or 0
        return [Started(self.request.id, self._epoch, self._next_seq(), first.num_prompt_tokens, cached, prompt_ids)]

    def advance(self, choice: Choice, result: SampledToken) -> list[Event]:
        """The events of one step. If the choice has a `reason` afterwards, its sequence must end, even if the engine would
        continue it: the text reached a stop string. If this raises, it uses up no event number."""
        seq = self._seq
        try:
            return self._advanced(choice, result)
        except Exception:
            self._seq = seq
            raise

    def _advanced(self, choice: Choice, result: SampledToken) -> list[Event]:
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
        elif choice.reason is not None and not _includes_end(events):
            events.append(self._frame(choice, Delta("")))
        return events

    def aborted(self) -> Finished:
        for choice in self.choices:
            choice.reason = FinishReason.ABORT
        return self.finished()

    def finished(self) -> Finished:
        """The terminal event once every choice has ended. Usage counts the prompt once, because the choices share it."""
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
            Timings(prefill_ns=first_token_ns - self._started_ns, decode_ns=now - first_token_ns),
        )

    def handed_over(self) -> HandedOver:
        return HandedOver(self.request.id, self._epoch, self._next_seq())

    def failed(self, error: CorralError) -> Failed:
        return Failed(self.request.id, self._epoch, self._next_seq(), error.code, error.message, error.field)

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


def _includes_end(events: list[Event]) -> bool:
    return bool(events) and isinstance(events[-1], Frame) and events[-1].reason is not None
