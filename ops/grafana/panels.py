"""How a dashboard of Corral is put together: rows of panels, each with its queries, over Grafana's own builders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

#: Chosen at the top of each dashboard; the provisioned one is the default.
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

TAG = "corral"
_WIDTH = 24
_HEIGHT = 8
#: A longer pause between two values is a gap in the line.
_CONNECTED_MS = 3_600_000


@dataclass(frozen=True)
class Query:
    """`legend` may name labels, as in `{{model}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A graph; with `number` the last value, large. `unit` is Grafana's name of one, `width` of the row's 24. The axis goes from `least` to
    `most`, None: as far as the values do. Values above `red_above` or below `red_below` are what someone should look at: a red line in a
    graph, a red number."""

    title: str
    queries: Sequence[Query]
    unit: str = "short"
    width: int = 8
    text: str = ""
    stacked: bool = False
    number: bool = False
    least: float | None = 0
    most: float | None = None
    red_above: float | None = None
    red_below: float | None = None


def share(title: str, queries: Sequence[Query], width: int = 8, **options: Any) -> Panel:
    """A graph of parts of a whole, from 0 to 100 %."""
    return Panel(title, queries, "percentunit", width, most=1, **options)


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
        .span(panel.width)
        .height(_HEIGHT)
        .line_width(1)
        .fill_opacity(30 if panel.stacked else 8)
        .span_nulls(_CONNECTED_MS)
        .legend(legend)
        .thresholds(_thresholds(panel))
    )
    if panel.least is not None:
        builder = builder.min(panel.least)
    elif panel.red_below is not None and panel.red_above is not None:
        builder = builder.axis_soft_min(panel.red_below).axis_soft_max(panel.red_above)
    if panel.most is not None:
        builder = builder.max(panel.most)
    if panel.red_above is not None or panel.red_below is not None:
        builder = builder.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
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
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(panel))
    )
    if panel.most is not None:
        builder = builder.max(panel.most)
    for target in _targets(panel):
        builder = builder.with_target(target)
    return builder


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    """Without any, Grafana paints what is above 80 red."""
    steps = [Threshold(None, "green" if panel.red_below is None else "red")]
    if panel.red_below is not None:
        steps.append(Threshold(panel.red_below, "green"))
    if panel.red_above is not None:
        steps.append(Threshold(panel.red_above, "red"))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _targets(panel: Panel) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().expr(query.expr).legend_format(query.legend or "__auto").ref_id(chr(ord("A") + index))
        for index, query in enumerate(panel.queries)
    ]


def rate(counter: str, *, by: str = "", where: str = "", window: str = "$__rate_interval") -> str:
    """A second's worth of a counter, summed."""
    grouping = f" by ({by})" if by else ""
    selector = f"{{{where}}}" if where else ""
    return f"sum{grouping} (rate({counter}{selector}[{window}]))"


def ratio(part: str, whole: str, *, matching: str = "") -> str:
    """Without values for times at which there is nothing to divide by."""
    return f"{part} / {matching}{' ' if matching else ''}({whole} > 0)"


def percentile(part: float, histogram: str, *, by: str = "", where: str = "") -> str:
    """Of five minutes: fewer requests than that make a line of gaps and jumps. Times without any have no value."""
    grouping = f"le, {by}" if by else "le"
    buckets = rate(f"{histogram}_bucket", by=grouping, where=where, window="5m")
    return f"histogram_quantile({part}, {buckets}) >= 0"


def percentiles(histogram: str, *, where: str = "") -> list[Query]:
    """The median, the 95th and the 99th percentile."""
    return [Query(percentile(part, histogram, where=where), f"p{part * 100:.0f}") for part in (0.5, 0.95, 0.99)]


def mean(histogram: str, *, by: str = "", where: str = "") -> str:
    total, count = (rate(f"{histogram}_{name}", by=by, where=where, window="5m") for name in ("sum", "count"))
    return ratio(total, count)
