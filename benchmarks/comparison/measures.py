"""Computes throughput, times to the first token and times between tokens from the answers to a step. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Answer:
    """One request as its client saw it; times in seconds of one clock. `token_times` has an entry for each event with text, so
    there are fewer than tokens if some had none; it is not empty. If the client left before the end, `completion_tokens`
    counts these entries and the counts of the prompt are 0."""

    sent_s: float
    token_times: tuple[float, ...]
    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def ttft_s(self) -> float:
        return self.token_times[0] - self.sent_s


@dataclass(frozen=True)
class Measures:
    """The measures of one step on one server. Output tokens per second are over the time from the first request to the last
    token; prompt tokens, including cached ones, over the time until every prompt had its first token. `itl` is the time
    between tokens."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float
    itl_max_s: float
    wall_s: float


def measure(answers: Sequence[Answer]) -> Measures:
    started = min(answer.sent_s for answer in answers)
    last_first = max(answer.token_times[0] for answer in answers)
    wall_s = max(answer.token_times[-1] for answer in answers) - started
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    output_tokens = sum(answer.completion_tokens for answer in answers)
    ttfts = [answer.ttft_s for answer in answers]
    gaps = [later - earlier for answer in answers for earlier, later in pairwise(answer.token_times)] or [0.0]
    return Measures(
        requests=len(answers),
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(answer.cached_tokens for answer in answers),
        output_tokens=output_tokens,
        output_tokens_per_s=output_tokens / wall_s,
        prompt_tokens_per_s=prompt_tokens / (last_first - started),
        ttft_p50_s=percentile(ttfts, 50),
        ttft_p99_s=percentile(ttfts, 99),
        itl_p50_s=percentile(gaps, 50),
        itl_p99_s=percentile(gaps, 99),
        itl_max_s=max(gaps),
        wall_s=wall_s,
    )


def measure_arrival(running: Sequence[Answer], late: Answer) -> Measures:
    """The effect of a long prompt's arrival. The times to the first token are the long prompt's. The times between tokens and
    the output are those of the running chats, from the sending of the prompt to its first token; a pause counts if any part
    of it lies within that time."""
    begin, end = late.sent_s, late.token_times[0]
    output_tokens = sum(begin <= at <= end for answer in running for at in answer.token_times)
    gaps = [
        later - earlier
        for answer in running
        for earlier, later in pairwise(answer.token_times)
        if later > begin and earlier < end
    ]
    return Measures(
        requests=len(running) + 1,
        prompt_tokens=late.prompt_tokens,
        cached_tokens=late.cached_tokens,
        output_tokens=output_tokens,
        output_tokens_per_s=output_tokens / late.ttft_s,
        prompt_tokens_per_s=late.prompt_tokens / late.ttft_s,
        ttft_p50_s=late.ttft_s,
        ttft_p99_s=late.ttft_s,
        itl_p50_s=percentile(gaps, 50),
        itl_p99_s=percentile(gaps, 99),
        itl_max_s=max(gaps),
        wall_s=late.ttft_s,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolates linearly; `values` is not empty."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
