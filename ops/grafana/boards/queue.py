"""Who waits, for how long, and whether everybody gets a share."""

from __future__ import annotations

from ops.grafana.limits import MAX_WAIT_S
from ops.grafana.panels import Board, Panel, Query, Row, Variable, percentile, rate, ratio, share

_ONE = 'model=~"$model"'

QUEUE = Board(
    uid="corral-queue",
    title="Corral: queue and fairness",
    text="Requests waiting by model, priority and team, and the share of the cluster that each team gets.",
    variables=(Variable("model", "corral_queue_waiting_requests"),),
    rows=(
        Row(
            "Waiting",
            (
                Panel(
                    "By priority",
                    [Query(f"sum by (priority) (corral_queue_waiting_requests{{{_ONE}}})", "{{priority}}")],
                    stacked=True,
                ),
                Panel(
                    "By team",
                    [Query(f"sum by (team) (corral_queue_team_waiting_requests{{{_ONE}}})", "{{team}}")],
                    stacked=True,
                ),
                Panel(
                    "Longest current wait, by model",
                    [Query(f"max by (model) (corral_queue_oldest_wait_seconds{{{_ONE}}})", "{{model}}")],
                    "s",
                    red_above=MAX_WAIT_S,
                ),
                Panel(
                    "Queue wait, p95, by priority",
                    [Query(percentile(0.95, "corral_queue_wait_seconds", by="priority", where=_ONE), "{{priority}}")],
                    "s",
                ),
                Panel(
                    "Queue wait, p95, by model",
                    [Query(percentile(0.95, "corral_queue_wait_seconds", by="model", where=_ONE), "{{model}}")],
                    "s",
                ),
                Panel(
                    "Slots",
                    [
                        Query(f"sum(corral_worker_busy_slots{{{_ONE}}})", "busy"),
                        Query(f"sum(corral_worker_slots{{{_ONE}}})", "all"),
                    ],
                ),
            ),
        ),
        Row(
            "Shares",
            (
                share(
                    "Share of generated tokens, by team",
                    [
                        Query(
                            ratio(
                                rate("corral_completion_tokens_total", by="team", where=_ONE),
                                rate("corral_completion_tokens_total", where=_ONE),
                                matching="on() group_left()",
                            ),
                            "{{team}}",
                        )
                    ],
                    stacked=True,
                ),
                Panel(
                    "Requests answered, by team",
                    [Query(rate("corral_requests_total", by="team", where=f'{_ONE}, outcome="answered"'), "{{team}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Requests refused or rejected, by team",
                    [Query(rate("corral_requests_total", by="team", where=f'{_ONE}, outcome=~"refused|rejected"'), "{{team}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel("Refusals, by reason", [Query(rate("corral_refusals_total", by="reason"), "{{reason}}")], "reqps", 24),
            ),
        ),
    ),
)
