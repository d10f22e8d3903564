"""The dashboards: their JSON matches the code, and their queries use existing metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ops.grafana import limits
from ops.grafana.boards import BOARDS
from ops.grafana.boards.overview import OVERVIEW
from ops.grafana.build import FOLDER, rendered
from ops.grafana.panels import Board
from tests.ops.prometheus import RULES, promtool
from tests.scraping import documented

ROOT = Path(__file__).parents[2]
PROVISIONING = ROOT / "ops" / "grafana" / "provisioning"

_NAME = re.compile(r"\b(corral_\w+)")
_RECORDED = re.compile(r"\b(corral:[\w:]+)")
_PARTS = re.compile(r"_(bucket|count|sum)$")


def expressions(board: Board) -> Iterator[str]:
    yield from (query.expr for row in board.rows for panel in row.panels for query in panel.queries)
    yield from (variable.values for variable in board.variables)


def unknown(text: str) -> set[str]:
    known = documented()
    return {name for name in _NAME.findall(text) if name not in known and _PARTS.sub("", name) not in known}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_json_and_code_agree(board: Board) -> None:
    assert (FOLDER / f"{board.uid}.json").read_text() == rendered(board), "run python -m ops.grafana.build"


def test_there_are_no_other_json_files() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(board.uid for board in BOARDS)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_panels_use_documented_metrics(board: Board) -> None:
    recorded = {name for path in RULES for name in re.findall(r"record: (\S+)", path.read_text())}
    for expression in expressions(board):
        assert not unknown(expression), expression
        assert set(_RECORDED.findall(expression)) <= recorded, expression


def test_rules_use_documented_metrics() -> None:
    for path in RULES:
        assert not unknown(path.read_text()), path


def test_every_documented_metric_is_on_a_dashboard() -> None:
    asked = " ".join(expression for board in BOARDS for expression in expressions(board))
    shown = {name for found in _NAME.findall(asked) for name in (found, _PARTS.sub("", found))}
    assert set(documented()) - shown == set()


def provisioned() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    return found


def references(node: Any) -> Iterator[dict[str, Any]]:
    """Every datasource reference in a dashboard."""
    if isinstance(node, dict):
        if "datasource" in node:
            yield node["datasource"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_panels_use_a_provisioned_datasource(board: Board) -> None:
    """By its uid, or by a variable that selects one of its type."""
    shown = json.loads((FOLDER / f"{board.uid}.json").read_text())
    chosen = {
        f"${{{variable['name']}}}": variable["query"]
        for variable in shown["templating"]["list"]
        if variable["type"] == "datasource"
    }
    known = {source["uid"]: source["type"] for source in provisioned()}
    asked = list(references(shown))
    assert asked
    for reference in asked:
        assert reference["type"] == {**known, **chosen}[reference["uid"]]
        assert reference["type"] in known.values()


def test_prometheus_is_the_default_datasource() -> None:
    assert [source["name"] for source in provisioned() if source["isDefault"]] == ["Prometheus"]


def test_the_provisioning_matches_the_compose_file() -> None:
    """The provider's path is where the container mounts the dashboards, and the datasource's URL is the address of Prometheus."""
    cluster = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    mounted = {
        inside: ROOT / outside for outside, inside, *_ in (volume.split(":") for volume in cluster["grafana"]["volumes"])
    }
    assert mounted["/etc/grafana/provisioning"] == PROVISIONING
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "corral.yml").read_text())["providers"]
    assert mounted[provider["options"]["path"]] == FOLDER
    (source,) = provisioned()
    address = urlsplit(source["url"])
    assert address.hostname in cluster
    assert f"127.0.0.1:{address.port}/" in " ".join(cluster[address.hostname]["healthcheck"]["test"])
    assert set(cluster["grafana"]["networks"]) & set(cluster[address.hostname]["networks"])


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """The panels of every dashboard, as Grafana reads them, with a name for messages."""
    for board in BOARDS:
        for panel in json.loads((FOLDER / f"{board.uid}.json").read_text())["panels"]:
            if panel["type"] != "row":
                yield f"{board.uid}: {panel['title']}", panel


def test_axes_have_sensible_limits() -> None:
    """Percentages end at 100, except the error of a memory estimate, which may also be negative."""
    for name, panel in panels():
        axis = panel["fieldConfig"]["defaults"]
        if "Memory against its estimate" in name:
            assert {"min", "max"}.isdisjoint(axis)
            assert axis["custom"]["axisSoftMin"] == -axis["custom"]["axisSoftMax"] == -limits.MEMORY_OFF
        else:
            assert axis.get("max") == (1 if axis["unit"] == "percentunit" else axis.get("max")), name
            assert panel["type"] == "stat" or axis["min"] == 0, name


def test_only_panels_that_need_attention_turn_red() -> None:
    """Grafana's default would paint everything above 80 red."""
    red = set()
    for name, panel in panels():
        axis = panel["fieldConfig"]["defaults"]
        steps = axis["thresholds"]["steps"]
        assert axis["thresholds"]["mode"] == "absolute", name
        if [step["color"] for step in steps] != ["green"]:
            red.add(name)
            assert not re.search("tokens/s|reqps", axis["unit"]), name
            assert panel["type"] == "stat" or axis["custom"]["thresholdsStyle"]["mode"] == "dashed", name
    assert {
        "corral-slo: Answered",
        "corral-queue: Longest current wait, by model",
        "corral-overview: Time to first token",
    } <= red


def test_panels_turn_red_at_the_limits_of_the_alerts() -> None:
    rules = " ".join(path.read_text() for path in RULES)
    for name, value in vars(limits).items():
        if name.isupper() and name not in ("MEMORY_TAKEN", "MAY_FAIL", "MAY_BE_LATE"):
            assert re.search(rf"(?<![\d.]){value:g}(?![\d.])", rules), name
    assert f"> {limits.FAST_BURN} * {limits.MAY_FAIL} " in rules
    assert f"> {limits.LATE_BURN:g} * {limits.MAY_BE_LATE} " in rules
    assert f"< {1 - limits.MEMORY_TAKEN:.2f}" in rules


def test_few_requests_still_draw_lines_without_gaps() -> None:
    for name, panel in panels():
        if panel["type"] == "timeseries":
            assert panel["fieldConfig"]["defaults"]["custom"]["spanNulls"] >= 60_000, name
        for target in panel["targets"]:
            assert "histogram_quantile" not in target["expr"] or re.search(r"\[5m\].*\) >= 0$", target["expr"]), name


def test_errors_of_callers_do_not_count_as_errors_of_the_cluster() -> None:
    asked = [expression for board in BOARDS for expression in expressions(board)] + [path.read_text() for path in RULES]
    assert not [text for text in asked if 'outcome!="cancelled"' in text]


def test_the_overview_can_be_filtered_by_model_and_team() -> None:
    assert [variable.name for variable in OVERVIEW.variables] == ["model", "team"]
    metrics = documented()
    for expression in (query.expr for row in OVERVIEW.rows for panel in row.panels for query in panel.queries):
        for name, chosen in re.findall(r"\b(corral_\w+)(?:\{([^}]*)\})?", expression):
            labels = metrics[name if name in metrics else _PARTS.sub("", name)].labels
            for label in {"model", "team"} & (
                labels | ({"model"} if "_worker_" in name else set())
            ):  # the model is a label of the worker's target
                assert f'{label}=~"${label}"' in chosen, expression


def test_prometheus_parses_every_query(tmp_path: Path) -> None:
    """As rules, because promtool does not check a single query."""
    asked = [query.expr for board in BOARDS for row in board.rows for panel in row.panels for query in panel.queries]
    rules = [
        {"record": f"query:{number}", "expr": re.sub(r"\$__\w+", "5m", expr).replace("$", "")}
        for number, expr in enumerate(asked)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", file)


def test_the_runbook_names_existing_dashboards() -> None:
    named = re.findall(r"[Dd]ashboards? \*([^*]+)\*", (ROOT / "ops" / "runbook.md").read_text())
    assert named
    assert {name.lower() for name in named} <= {board.title.removeprefix("Corral: ").lower() for board in BOARDS}
