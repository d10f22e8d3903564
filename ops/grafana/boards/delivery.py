"""Whether answers arrive: failovers, losses, and the parts that carry them."""

from __future__ import annotations

from ops.grafana.panels import Board, Panel, Query, Row, percentile, rate

DELIVERY = Board(
    uid="corral-delivery",
    title="Corral: delivery",
    text="What became of requests, and of the workers that had them.",
    rows=(
        Row(
            "Requests",
            (
                Panel(
                    "Ended, by outcome",
                    [Query(rate("corral_requests_total", by="outcome"), "{{outcome}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Failovers, by cause", [Query(rate("corral_failovers_total", by="cause"), "{{cause}}")], "ops", stacked=True
                ),
                Panel(
                    "Clients that left",
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
                        Query(rate("corral_worker_claims_total", where='resumed="no"'), "begun"),
                        Query(rate("corral_worker_claims_total", where='resumed="yes"'), "gone on with"),
                    ],
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Ends, by reason",
                    [Query(rate("corral_worker_ends_total", by="reason"), "{{reason}}")],
                    "reqps",
                    stacked=True,
                ),
                Panel("Claimed and not ended", [Query("sum by (model) (corral_worker_requests)", "{{model}}")], stacked=True),
            ),
        ),
        Row(
            "Gateways",
            (
                Panel(
                    "Event loop late, 99 of 100",
                    [Query(percentile(0.99, "corral_gateway_loop_lag_seconds", by="instance"), "{{instance}}")],
                    "s",
                ),
                Panel("Redis answers", [Query("corral_gateway_redis_connected", "{{instance}}")]),
                Panel("Scrapes that succeed", [Query("sum by (service) (up)", "{{service}}")]),
            ),
        ),
    ),
)
