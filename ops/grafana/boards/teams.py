"""Who uses how much."""

from __future__ import annotations

from ops.grafana.panels import Board, Panel, Query, Row, Variable, rate, ratio, share

_ONE = 'team=~"$team"'


def _in_range(counter: str, by: str) -> str:
    return f"sum by ({by}) (increase({counter}{{{_ONE}}}[$__range]))"


TEAMS = Board(
    uid="corral-teams",
    title="Corral: teams and usage",
    text="Requests and tokens by team, now and over the chosen time. The numbers are estimates from Prometheus: use them for an overview, not for bills.",
    variables=(Variable("team", "corral_requests_total"),),
    rows=(
        Row(
            "Over the chosen time range",
            (
                Panel(
                    "Tokens generated", [Query(_in_range("corral_completion_tokens_total", "team"), "{{team}}")], number=True
                ),
                Panel("Prompt tokens", [Query(_in_range("corral_prompt_tokens_total", "team"), "{{team}}")], number=True),
                Panel("Requests", [Query(_in_range("corral_requests_total", "team"), "{{team}}")], number=True),
            ),
        ),
        Row(
            "Now",
            (
                Panel(
                    "Tokens generated",
                    [Query(rate("corral_completion_tokens_total", by="team", where=_ONE), "{{team}}")],
                    "suffix: tokens/s",
                    stacked=True,
                ),
                Panel(
                    "Prompt tokens computed",
                    [
                        Query(
                            f"{rate('corral_prompt_tokens_total', by='team', where=_ONE)}"
                            f" - {rate('corral_cached_tokens_total', by='team', where=_ONE)}",
                            "{{team}}",
                        )
                    ],
                    "suffix: tokens/s",
                    stacked=True,
                ),
                share(
                    "Share of prompt tokens cached",
                    [
                        Query(
                            ratio(
                                rate("corral_cached_tokens_total", by="team", where=_ONE),
                                rate("corral_prompt_tokens_total", by="team", where=_ONE),
                            ),
                            "{{team}}",
                        )
                    ],
                ),
                Panel(
                    "Requests, by outcome",
                    [Query(rate("corral_requests_total", by="team, outcome", where=_ONE), "{{team}} {{outcome}}")],
                    "reqps",
                    12,
                    stacked=True,
                ),
                Panel(
                    "Tokens generated, by team and model",
                    [Query(rate("corral_completion_tokens_total", by="team, model", where=_ONE), "{{team}} {{model}}")],
                    "suffix: tokens/s",
                    12,
                    stacked=True,
                ),
            ),
        ),
    ),
)
