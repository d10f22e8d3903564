"""The service level of ops/prometheus/rules/slo.yml, and how fast its budget of errors goes."""

from __future__ import annotations

from ops.grafana.panels import Board, Panel, Query, Row

#: Parts of the requests that may fail, and of the answers that may begin late, as the rules say.
MAY_FAIL = 0.005
MAY_BE_LATE = 0.05

_BAD = 'sum(increase(corral_requests_total{outcome=~"failed|expired|refused"}[30d]))'
_ALL = 'sum(increase(corral_requests_total{outcome!="cancelled"}[30d]))'
_SOON = 'sum(increase(corral_time_to_first_token_seconds_bucket{le="2.5"}[30d]))'
_BEGUN = "sum(increase(corral_time_to_first_token_seconds_count[30d]))"

SLO = Board(
    uid="corral-slo",
    title="Corral: service level",
    text="99.5 % of the requests of 30 days are answered, and 95 % of the answers begin within 2.5 s.",
    rows=(
        Row(
            "30 days",
            (
                Panel("Answered", [Query(f"1 - {_BAD} / {_ALL}")], "percentunit", 6, number=True),
                Panel("Budget of errors left", [Query(f"1 - {_BAD} / {_ALL} / {MAY_FAIL}")], "percentunit", 6, number=True),
                Panel("Begun within 2.5 s", [Query(f"{_SOON} / {_BEGUN}")], "percentunit", 6, number=True),
                Panel(
                    "Budget of late answers left",
                    [Query(f"1 - (1 - {_SOON} / {_BEGUN}) / {MAY_BE_LATE}")],
                    "percentunit",
                    6,
                    number=True,
                ),
            ),
        ),
        Row(
            "How fast the budgets go: 1 is all of it in 30 days",
            (
                Panel(
                    "Requests that fail",
                    [
                        Query(f"corral:requests_failed:ratio_rate{window} / {MAY_FAIL}", window)
                        for window in ("5m", "30m", "1h", "6h")
                    ],
                    width=12,
                ),
                Panel(
                    "Answers that begin late",
                    [Query(f"corral:first_token_late:ratio_rate{window} / {MAY_BE_LATE}", window) for window in ("5m", "1h")],
                    width=12,
                ),
            ),
        ),
        Row(
            "By model",
            (
                Panel(
                    "Part of the requests that fail",
                    [
                        Query(
                            'sum by (model) (rate(corral_requests_total{outcome=~"failed|expired|refused"}[5m]))'
                            ' / sum by (model) (rate(corral_requests_total{outcome!="cancelled"}[5m]))',
                            "{{model}}",
                        )
                    ],
                    "percentunit",
                    12,
                ),
                Panel(
                    "Part of the answers that begin late",
                    [
                        Query(
                            '1 - sum by (model) (rate(corral_time_to_first_token_seconds_bucket{le="2.5"}[5m]))'
                            " / sum by (model) (rate(corral_time_to_first_token_seconds_count[5m]))",
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
