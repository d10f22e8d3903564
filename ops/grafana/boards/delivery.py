"""Whether answers arrive: failovers, losses, and the parts that carry them."""

from __future__ import annotations

from ops.grafana.limits import LOOP_LAG_S
from ops.grafana.panels import Board, Panel, Query, Row, percentile, rate

DELIVERY = Board(
    uid="corral-delivery",
    title="Corral: delivery",
    text="How requests ended, which ones moved to another worker, and whether gateways and Redis are healthy.",
    rows=(
        Row(
            "Requests",
            (
                Panel(
                    "Requests ended, by outcome",
                    [Query(rate("corral_requests_total", by="outcome"), "{{outcome}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Failovers, by cause", [Query(rate("corral_failovers_total", by="cause"), "{{cause}}")], "ops", stacked=True
                ),
                Panel(
                    "Client disconnects",
                    [Query(rate("corral_cancellations_total", by="phase"), "while {{phase}}")],
                    "reqps",
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Workers",
            (
                Panel(
                    "Claims",
                    [
                        Query(rate("corral_worker_claims_total", where='resumed="no"'), "new"),
                        Query(rate("corral_worker_claims_total", where='resumed="yes"'), "resumed"),
                    ],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Requests ended on workers, by reason",
                    [Query(rate("corral_worker_ends_total", by="reason"), "{{reason}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Requests in progress, by model",
                    [Query("sum by (model) (corral_worker_requests)", "{{model}}")],
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Gateways",
            (
                Panel(
                    "Event loop lag, p99",
                    [Query(percentile(0.99, "corral_gateway_loop_lag_seconds", by="instance"), "{{instance}}")],
                    "s",
                    red_above=LOOP_LAG_S,
                ),
                Panel("Redis answers", [Query("corral_gateway_redis_connected", "{{instance}}")], most=1, red_below=1),
                Panel("Successful scrapes", [Query("sum by (service) (up)", "{{service}}")]),
            ),
        ),
    ),
)
