"""The workloads by name, and their goals: ratios of Corral to llama-server within one run."""

from __future__ import annotations

from collections.abc import Collection

from comparison.models import Model
from comparison.ratios import Goal
from comparison.workloads import Burst, Conversations, Independent, LateArrival, SharedPrompt, Workload

INDEPENDENT = "independent prompts"
SHARED = "shared system prompt"
BURST = "burst"
CHATS = "multi-turn chats"
ARRIVAL = "long prompt arrives"
SHORT = "short prompts, long answers"

CONCURRENCY = (1, 4, 8, 16, 32)

#: By part of a workload; parts that are not listed have no goal.
GOALS = (
    Goal(INDEPENDENT, "output_tokens_per_s", at_least=1.0),
    Goal(BURST, "ttft_p50_s", at_most=0.3),
    Goal(BURST, "output_tokens_per_s", at_least=2.5),
    Goal(f"{BURST}, again", "output_tokens_per_s", at_least=1.0),
    Goal(CHATS, "output_tokens_per_s", at_least=1.0),
    Goal(ARRIVAL, "itl_p99_s", at_most=0.1),
    Goal(ARRIVAL, "ttft_p50_s", at_most=1.3),
)


#: The names of the goals' measures in the tables.
MEASURE_NAMES = {
    "output_tokens_per_s": "tokens/s out",
    "ttft_p50_s": "median time to first token",
    "itl_p99_s": "p99 time between tokens",
}

#: In the order in which they run.
NAMES = (INDEPENDENT, SHORT, SHARED, BURST, CHATS, ARRIVAL)

#: The workloads of --quick.
QUICK_NAMES = (INDEPENDENT, BURST, CHATS, ARRIVAL)
QUICK_CONCURRENCY = (1, 8)


def workloads(model: Model, names: Collection[str], concurrency: Collection[int]) -> list[Workload]:
    """The workloads with these names; the independent prompts for each number of clients."""
    independent = [
        Independent(INDEPENDENT, clients, 512, prompt_tokens=100, output_tokens=64, asks=max(1, 4 // clients))
        for clients in concurrency
    ]
    every = [
        *independent,
        Independent(SHORT, 8, 512, prompt_tokens=16, output_tokens=256),
        SharedPrompt(SHARED, 8, 2048, prompt_tokens=1000, output_tokens=32, asks=2),
        Burst(BURST, 8, 2048, prompt_tokens=1250, output_tokens=32, asks=1),
        Conversations(CHATS, 8, 2048, chats=model.chats, turns=4, prompt_tokens=56, output_tokens=48),
        LateArrival(ARRIVAL, 9, 4608, prompt_tokens=4000, running_prompt_tokens=100, tokens_before=16, output_tokens=16),
    ]
    return [workload for workload in every if workload.name in names]
