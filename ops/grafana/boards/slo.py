"""The service level of ops/prometheus/rules/slo.yml, and how fast its budget of errors goes."""

from __future__ import annotations

from ops.grafana.limits import FAST_BURN, LATE_BURN, MAY_BE_LATE, MAY_FAIL
from ops.grafana.panels import Board, Panel, Query, Row, rate, ratio, share

_BAD = 'sum(increase(corral_requests_total{outcome=~"failed|expired|refused"}[30d]))'
_COUNTED = 'outcome!~"cancelled|rejected"'
_ALL = f"sum(increase(corral_requests_total{{{_COUNTED}}}[30d]))"
_SOON = 'sum(increase(corral_time_to_first_token_seconds_bucket{le="2.5"}[30d]))'
_BEGUN = "sum(increase(corral_time_to_first_token_seconds_count[30d]))"
_SOON_BY_MODEL = rate("corral_time_to_first_token_seconds_bucket", by="model", where='le="2.5"', window="5m")
_BEGUN_BY_MODEL = rate("corral_time_to_first_token_seconds_count", by="model", window="5m")


def _by_model(where: str) -> str:
    return rate("corral_requests_total", by="model", where=where, window="5m")


def _number(title: str, expr: str, *, red_below: float) -> Panel:
    return Panel(title, [Query(expr)], "percentunit", 6, number=True, most=1, red_below=red_below)


SLO = Board(
    uid="corral-slo",
    title="Corral: service level",
    text="Over 30 days, 99.5 % of requests are answered, and 95 % of answers start within 2.5 s.",
    rows=(
        Row(
            "30 days",
            (
                _number("Answered", f"1 - {ratio(_BAD, _ALL)}", red_below=1 - MAY_FAIL),
                _number("Error budget left", f"1 - {ratio(_BAD, _ALL)} / {MAY_FAIL}", red_below=0),
                _number("Started within 2.5 s", ratio(_SOON, _BEGUN), red_below=1 - MAY_BE_LATE),
                _number("Late answer budget left", f"1 - (1 - {ratio(_SOON, _BEGUN)}) / {MAY_BE_LATE}", red_below=0),
            ),
        ),
        Row(
            "Burn rate: 1 uses up the budget in 30 days",
            (
                Panel(
                    "Failed requests",
                    [
                        Query(f"corral:requests_failed:ratio_rate{window} / {MAY_FAIL}", window)
                        for window in ("5m", "30m", "1h", "6h")
                    ],
                    width=12,
                    red_above=FAST_BURN,
                ),
                Panel(
                    "Late answers",
                    [Query(f"corral:first_token_late:ratio_rate{window} / {MAY_BE_LATE}", window) for window in ("5m", "1h")],
                    width=12,
                    red_above=LATE_BURN,
                ),
            ),
        ),
        Row(
            "By model",
            (
                share(
                    "Share of requests that fail",
                    [Query(ratio(_by_model('outcome=~"failed|expired|refused"'), _by_model(_COUNTED)), "{{model}}")],
                    12,
                    red_above=MAY_FAIL,
                ),
                share(
                    "Share of answers that start late",
                    [Query(f"1 - {ratio(_SOON_BY_MODEL, _BEGUN_BY_MODEL)}", "{{model}}")],
                    12,
                    red_above=MAY_BE_LATE,
                ),
            ),
        ),
    ),
)
