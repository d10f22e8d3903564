"""The dashboards: the JSON that Grafana reads is what the code says, and asks only for metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ops.grafana.boards import BOARDS
from ops.grafana.build import FOLDER, rendered
from ops.grafana.panels import Board
from tests.ops.test_alerts import RULES
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


def test_no_other_files_are_there() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(board.uid for board in BOARDS)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_panels_ask_for_documented_metrics(board: Board) -> None:
    recorded = {name for path in RULES for name in re.findall(r"record: (\S+)", path.read_text())}
    for expression in expressions(board):
        assert not unknown(expression), expression
        assert set(_RECORDED.findall(expression)) <= recorded, expression


def test_rules_ask_for_documented_metrics() -> None:
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
    """Every datasource that something in a dashboard names."""
    if isinstance(node, dict):
        if "datasource" in node:
            yield node["datasource"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_panels_ask_a_datasource_that_is_provisioned(board: Board) -> None:
    """By its uid, or by a variable that is to choose one of its type."""
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


def test_one_datasource_is_chosen_where_nobody_chooses() -> None:
    assert [source["name"] for source in provisioned() if source["isDefault"]] == ["Prometheus"]


def test_grafana_finds_what_is_provisioned() -> None:
    """The provider's folder is one that holds the dashboards, at its path within the container, and Prometheus is where the datasource
    looks for it."""
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
