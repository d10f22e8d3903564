"""One model: what is asked of it, how its replicas do it."""

from __future__ import annotations

from ops.grafana.limits import FIRST_TOKEN_S
from ops.grafana.panels import Board, Panel, Query, Row, Variable, mean, percentile, percentiles, rate

_ONE = 'model=~"$model"'

MODEL = Board(
    uid="corral-model",
    title="Corral: model",
    text="Requests, latency and engine of one or several models.",
    variables=(Variable("model", "corral_requests_in_flight"),),
    rows=(
        Row(
            "Requests",
            (
                Panel(
                    "Tokens",
                    [
                        Query(rate("corral_completion_tokens_total", where=_ONE), "generated"),
                        Query(rate("corral_prompt_tokens_total", where=_ONE), "prompts"),
                        Query(rate("corral_cached_tokens_total", where=_ONE), "prompts, cached"),
                    ],
                    "suffix: tokens/s",
                ),
                Panel(
                    "Requests ended, by outcome",
                    [Query(rate("corral_requests_total", by="outcome", where=_ONE), "{{outcome}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel("Requests in flight", [Query(f"sum by (model) (corral_requests_in_flight{{{_ONE}}})", "{{model}}")]),
            ),
        ),
        Row(
            "Latency",
            (
                Panel(
                    "Time to first token",
                    percentiles("corral_time_to_first_token_seconds", where=_ONE),
                    "s",
                    red_above=FIRST_TOKEN_S,
                ),
                Panel("Time between tokens", percentiles("corral_inter_token_seconds", where=_ONE), "s"),
                Panel("Request duration", percentiles("corral_request_duration_seconds", where=_ONE), "s"),
                Panel("Queue wait", percentiles("corral_queue_wait_seconds", where=_ONE), "s"),
                Panel("Prefill", percentiles("corral_prefill_seconds", where=_ONE), "s"),
                Panel("Decode", percentiles("corral_decode_seconds", where=_ONE), "s"),
            ),
        ),
        Row(
            "Engine",
            (
                Panel(
                    "Busy slots, by replica",
                    [Query(f"sum by (node, replica) (corral_worker_busy_slots{{{_ONE}}})", "{{node}} {{replica}}")],
                    stacked=True,
                ),
                Panel(
                    "Step time, p95",
                    [Query(percentile(0.95, "corral_worker_step_seconds", by="node", where=_ONE), "{{node}}")],
                    "s",
                ),
                Panel(
                    "CPU threads, by replica",
                    [Query(f"sum by (node, replica) (corral_worker_threads{{{_ONE}}})", "{{node}} {{replica}}")],
                    stacked=True,
                ),
                Panel(
                    "Average batch size",
                    [
                        Query(mean("corral_worker_batch_tokens", where=_ONE), "tokens"),
                        Query(mean("corral_worker_batch_sequences", where=_ONE), "sequences"),
                    ],
                ),
                Panel(
                    "Tokens computed",
                    [Query(rate("corral_worker_computed_tokens_total", by="phase", where=_ONE), "{{phase}}")],
                    "suffix: tokens/s",
                    stacked=True,
                ),
                Panel(
                    "KV cells",
                    [
                        Query(f"sum by (state) (corral_worker_kv_used_tokens{{{_ONE}}})", "{{state}}"),
                        Query(f"sum(corral_worker_kv_tokens{{{_ONE}}})", "total"),
                    ],
                    "suffix: tokens",
                ),
                Panel(
                    "Preemptions, by replica",
                    [Query(rate("corral_worker_preemptions_total", by="replica", where=_ONE), "{{replica}}")],
                    "ops",
                ),
            ),
        ),
        Row(
            "Prefixes and replicas",
            (
                Panel(
                    "Prompts with a cached prefix: predicted, actual",
                    [
                        Query(
                            rate("corral_worker_prefix_claims_total", by="predicted, actual", where=_ONE),
                            "{{predicted}}, {{actual}}",
                        )
                    ],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Replicas",
                    [
                        Query(f"sum by (state) (corral_replicas{{{_ONE}}})", "{{state}}"),
                        Query(f"sum(corral_replicas_wanted{{{_ONE}}})", "wanted"),
                    ],
                ),
                Panel(
                    "Load time",
                    [Query(f"corral_worker_load_seconds{{{_ONE}}}", "{{node}} {{replica}}")],
                    "s",
                ),
            ),
        ),
    ),
)
