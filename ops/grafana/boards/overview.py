"""The cluster at a glance, throughput first."""

from __future__ import annotations

from ops.grafana.limits import FIRST_TOKEN_S, MAX_WAIT_S, MAY_FAIL
from ops.grafana.panels import Board, Panel, Query, Row, Variable, percentile, percentiles, rate, ratio, share

_MODEL = 'model=~"$model"'
#: For metrics that have teams.
_BOTH = f'{_MODEL}, team=~"$team"'
_BAD = rate("corral_requests_total", by="outcome", where=f'{_BOTH}, outcome=~"failed|expired|refused"')
_COUNTED = rate("corral_requests_total", where=f'{_BOTH}, outcome!~"cancelled|rejected"')

OVERVIEW = Board(
    uid="corral-overview",
    title="Corral: cluster",
    text="Throughput, latency and errors of the cluster. Latency, queues and slots are those of the chosen models, for all teams.",
    variables=(Variable("model", "corral_requests_total"), Variable("team", "corral_requests_total")),
    rows=(
        Row(
            "Now",
            (
                Panel(
                    "Tokens generated",
                    [Query(rate("corral_completion_tokens_total", where=_BOTH))],
                    "suffix: tokens/s",
                    4,
                    number=True,
                ),
                Panel(
                    "Requests answered",
                    [Query(rate("corral_requests_total", where=f'{_BOTH}, outcome="answered"'))],
                    "reqps",
                    4,
                    number=True,
                ),
                Panel("Requests in flight", [Query(f"sum(corral_requests_in_flight{{{_MODEL}}})")], "short", 4, number=True),
                Panel("Requests waiting", [Query(f"sum(corral_queue_waiting_requests{{{_MODEL}}})")], "short", 4, number=True),
                Panel(
                    "Ready replicas",
                    [Query(f'sum(corral_replicas{{{_MODEL}, state="ready"}})')],
                    "short",
                    4,
                    number=True,
                ),
                Panel("Ready nodes", [Query('sum(corral_nodes{state="ready"})')], "short", 4, number=True, red_below=1),
            ),
        ),
        Row(
            "Throughput",
            (
                Panel(
                    "Tokens generated, by model",
                    [Query(rate("corral_completion_tokens_total", by="model", where=_BOTH), "{{model}}")],
                    "suffix: tokens/s",
                    12,
                    stacked=True,
                ),
                Panel(
                    "Tokens generated, by team",
                    [Query(rate("corral_completion_tokens_total", by="team", where=_BOTH), "{{team}}")],
                    "suffix: tokens/s",
                    12,
                    stacked=True,
                ),
                Panel(
                    "Prompts",
                    [
                        Query(
                            f"{rate('corral_prompt_tokens_total', where=_BOTH)} - {rate('corral_cached_tokens_total', where=_BOTH)}",
                            "computed",
                        ),
                        Query(rate("corral_cached_tokens_total", where=_BOTH), "cached"),
                    ],
                    "suffix: tokens/s",
                    12,
                    stacked=True,
                ),
                Panel(
                    "Requests ended, by outcome",
                    [Query(rate("corral_requests_total", by="outcome", where=_BOTH), "{{outcome}}")],
                    "reqps",
                    12,
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Latency",
            (
                Panel(
                    "Time to first token",
                    percentiles("corral_time_to_first_token_seconds", where=_MODEL),
                    "s",
                    red_above=FIRST_TOKEN_S,
                ),
                Panel("Time between tokens", percentiles("corral_inter_token_seconds", where=_MODEL), "s"),
                Panel(
                    "Request duration, p95, by model",
                    [Query(percentile(0.95, "corral_request_duration_seconds", by="model", where=_MODEL), "{{model}}")],
                    "s",
                ),
            ),
        ),
        Row(
            "Queue and errors",
            (
                Panel(
                    "Requests waiting, by model",
                    [Query(f"sum by (model) (corral_queue_waiting_requests{{{_MODEL}}})", "{{model}}")],
                    stacked=True,
                ),
                Panel(
                    "Longest current wait, by model",
                    [Query(f"max by (model) (corral_queue_oldest_wait_seconds{{{_MODEL}}})", "{{model}}")],
                    "s",
                    red_above=MAX_WAIT_S,
                ),
                share(
                    "Share of requests that fail, by outcome",
                    [Query(ratio(_BAD, _COUNTED, matching="ignoring(outcome) group_left()"), "{{outcome}}")],
                    red_above=MAY_FAIL,
                ),
            ),
        ),
        Row(
            "Capacity",
            (
                Panel(
                    "Slots",
                    [
                        Query(f"sum(corral_worker_busy_slots{{{_MODEL}}})", "busy"),
                        Query(f"sum(corral_worker_slots{{{_MODEL}}})", "all"),
                    ],
                    width=12,
                ),
                share(
                    "KV cells used by running answers, by model",
                    [
                        Query(
                            f'sum by (model) (corral_worker_kv_used_tokens{{{_MODEL}, state="running"}})'
                            f" / sum by (model) (corral_worker_kv_tokens{{{_MODEL}}})",
                            "{{model}}",
                        )
                    ],
                    12,
                ),
            ),
        ),
    ),
)
