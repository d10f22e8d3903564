"""How a dashboard of Corral is put together: rows of panels, each with its queries, over Grafana's own builders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import Dashboard, DashboardCursorSync, DataSourceRef, VariableRefresh

#: Chosen at the top of each dashboard; the provisioned one is the default.
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

TAG = "corral"
_WIDTH = 24
_HEIGHT = 8


@dataclass(frozen=True)
class Query:
    """`legend` may name labels, as in `{{model}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A graph; with `number` the last value, large. `unit` is Grafana's name of one, `width` of the row's 24."""

    title: str
    queries: Sequence[Query]
    unit: str = "short"
    width: int = 8
    text: str = ""
    stacked: bool = False
    number: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """What may be chosen at the top, of the values of a label; everything to begin with."""

    name: str
    values: str


@dataclass(frozen=True)
class Board:
    """`uid` is its file's name too."""

    uid: str
    title: str
    text: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()

    def build(self) -> Dashboard:
        builder = (
            dashboard.Dashboard(self.title)
            .uid(self.uid)
            .description(self.text)
            .tags([TAG])
            .time("now-1h", "now")
            .refresh("10s")
            .timezone("browser")
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .link(dashboard.DashboardLink("Corral").tags([TAG]).as_dropdown(True).include_vars(True).keep_time(True))
            .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        )
        for variable in self.variables:
            builder = builder.with_variable(_chosen(variable))
        for row in self.rows:
            builder = builder.with_row(dashboard.Row(row.title))
            for panel in row.panels:
                builder = builder.with_panel(_number(panel) if panel.number else _graph(panel))
        return builder.build()


def _chosen(variable: Variable) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(variable.name)
        .query(f"label_values({variable.values}, {variable.name})")
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _graph(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions()
    legend = legend.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
    builder = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.text)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .span(panel.width)
        .height(_HEIGHT)
        .line_width(1)
        .fill_opacity(30 if panel.stacked else 8)
        .legend(legend)
    )
    if panel.stacked:
        builder = builder.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for target in _targets(panel):
        builder = builder.with_target(target)
    return builder


def _number(panel: Panel) -> stat.Panel:
    builder = (
        stat.Panel()
        .title(panel.title)
        .description(panel.text)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(_HEIGHT // 2)
        .graph_mode(BigValueGraphMode.AREA)
    )
    for target in _targets(panel):
        builder = builder.with_target(target)
    return builder


def _targets(panel: Panel) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().expr(query.expr).legend_format(query.legend or "__auto").ref_id(chr(ord("A") + index))
        for index, query in enumerate(panel.queries)
    ]


def rate(counter: str, *, by: str = "", where: str = "") -> str:
    """A second's worth of a counter, summed."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({counter}{{{where}}}[$__rate_interval]))" if where else _plain_rate(counter, grouping)


def _plain_rate(counter: str, grouping: str) -> str:
    return f"sum{grouping} (rate({counter}[$__rate_interval]))"


def percentile(part: float, histogram: str, *, by: str = "", where: str = "") -> str:
    grouping = f"le, {by}" if by else "le"
    return f"histogram_quantile({part}, {rate(f'{histogram}_bucket', by=grouping, where=where)})"


def percentiles(histogram: str, *, where: str = "") -> list[Query]:
    """The median, and what one of twenty and one of a hundred has to bear."""
    return [Query(percentile(part, histogram, where=where), f"p{part * 100:.0f}") for part in (0.5, 0.95, 0.99)]


def mean(histogram: str, *, by: str = "", where: str = "") -> str:
    return f"{rate(f'{histogram}_sum', by=by, where=where)} / {rate(f'{histogram}_count', by=by, where=where)}"
