"""One model: what is asked of it, how its replicas do it."""

from __future__ import annotations

from ops.grafana.limits import FIRST_TOKEN_S
from ops.grafana.panels import Board, Panel, Query, Row, Variable, mean, percentile, percentiles, rate

_ONE = 'model=~"$model"'

MODEL = Board(
    uid="corral-model",
    title="Corral: model",
    text="One model or several: requests, latency, and what its workers compute.",
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
                        Query(rate("corral_cached_tokens_total", where=_ONE), "of these cached"),
                    ],
                    "suffix: tokens/s",
                ),
                Panel(
                    "Requests that ended",
                    [Query(rate("corral_requests_total", by="outcome", where=_ONE), "{{outcome}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel("Under way", [Query(f"sum by (model) (corral_requests_in_flight{{{_ONE}}})", "{{model}}")]),
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
                Panel("Between tokens", percentiles("corral_inter_token_seconds", where=_ONE), "s"),
                Panel("Whole answers", percentiles("corral_request_duration_seconds", where=_ONE), "s"),
                Panel("Wait for a slot", percentiles("corral_queue_wait_seconds", where=_ONE), "s"),
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
                    "A step, 95 of 100",
                    [Query(percentile(0.95, "corral_worker_step_seconds", by="node", where=_ONE), "{{node}}")],
                    "s",
                ),
                Panel(
                    "Processor threads, by replica",
                    [Query(f"sum by (node, replica) (corral_worker_threads{{{_ONE}}})", "{{node}} {{replica}}")],
                    stacked=True,
                ),
                Panel(
                    "In a batch, on average",
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
                        Query(f"sum(corral_worker_kv_tokens{{{_ONE}}})", "all"),
                    ],
                    "suffix: tokens",
                ),
                Panel(
                    "Sequences that lost their slot",
                    [Query(rate("corral_worker_preemptions_total", by="replica", where=_ONE), "{{replica}}")],
                    "ops",
                ),
            ),
        ),
        Row(
            "Prefixes and replicas",
            (
                Panel(
                    "Prompts by what of them was held: predicted, actual",
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
                    "Loading took",
                    [Query(f"corral_worker_load_seconds{{{_ONE}}}", "{{node}} {{replica}}")],
                    "s",
                ),
            ),
        ),
    ),
)
