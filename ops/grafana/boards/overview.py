"""The cluster at a glance, throughput first."""

from __future__ import annotations

from ops.grafana.panels import Board, Panel, Query, Row, percentile, percentiles, rate

_BAD = rate("corral_requests_total", by="outcome", where='outcome=~"failed|expired|refused"')
_ENDED = rate("corral_requests_total", where='outcome!="cancelled"')

OVERVIEW = Board(
    uid="corral-overview",
    title="Corral: cluster",
    text="What the cluster gives, how fast, and what goes wrong.",
    rows=(
        Row(
            "Now",
            (
                Panel("Tokens generated", [Query(rate("corral_completion_tokens_total"))], "suffix: tokens/s", 4, number=True),
                Panel(
                    "Requests answered",
                    [Query(rate("corral_requests_total", where='outcome="answered"'))],
                    "reqps",
                    4,
                    number=True,
                ),
                Panel("Under way", [Query("sum(corral_requests_in_flight)")], "short", 4, number=True),
                Panel("Waiting now", [Query("sum(corral_queue_waiting_requests)")], "short", 4, number=True),
                Panel("Ready replicas", [Query('sum(corral_replicas{state="ready"})')], "short", 4, number=True),
                Panel("Ready nodes", [Query('sum(corral_nodes{state="ready"})')], "short", 4, number=True),
            ),
        ),
        Row(
            "Throughput",
            (
                Panel(
                    "Tokens generated, by model",
                    [Query(rate("corral_completion_tokens_total", by="model"), "{{model}}")],
                    "suffix: tokens/s",
                    12,
                    stacked=True,
                ),
                Panel(
                    "Tokens generated, by team",
                    [Query(rate("corral_completion_tokens_total", by="team"), "{{team}}")],
                    "suffix: tokens/s",
                    12,
                    stacked=True,
                ),
                Panel(
                    "Prompts",
                    [
                        Query(f"{rate('corral_prompt_tokens_total')} - {rate('corral_cached_tokens_total')}", "computed"),
                        Query(rate("corral_cached_tokens_total"), "cached"),
                    ],
                    "suffix: tokens/s",
                    12,
                    stacked=True,
                ),
                Panel(
                    "Requests that ended",
                    [Query(rate("corral_requests_total", by="outcome"), "{{outcome}}")],
                    "reqps",
                    12,
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Latency",
            (
                Panel("Time to first token", percentiles("corral_time_to_first_token_seconds"), "s"),
                Panel("Between tokens", percentiles("corral_inter_token_seconds"), "s"),
                Panel(
                    "Whole answers, 95 of 100",
                    [Query(percentile(0.95, "corral_request_duration_seconds", by="model"), "{{model}}")],
                    "s",
                ),
            ),
        ),
        Row(
            "Queue and errors",
            (
                Panel("Waiting", [Query("sum by (model) (corral_queue_waiting_requests)", "{{model}}")], stacked=True),
                Panel("Longest wait now", [Query("max by (model) (corral_queue_oldest_wait_seconds)", "{{model}}")], "s"),
                Panel(
                    "Part of the requests that fail",
                    [
                        Query(
                            f"{_BAD} / ignoring(outcome) group_left {_ENDED}",
                            "{{outcome}}",
                        )
                    ],
                    "percentunit",
                ),
            ),
        ),
        Row(
            "Room",
            (
                Panel(
                    "Slots",
                    [Query("sum(corral_worker_busy_slots)", "busy"), Query("sum(corral_worker_slots)", "all")],
                    width=12,
                ),
                Panel(
                    "KV cells that running answers take",
                    [
                        Query(
                            'sum by (model) (corral_worker_kv_used_tokens{state="running"}) / sum by (model) (corral_worker_kv_tokens)',
                            "{{model}}",
                        )
                    ],
                    "percentunit",
                    12,
                ),
            ),
        ),
    ),
)
