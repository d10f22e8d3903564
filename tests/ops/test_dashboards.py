"""The dashboards: the JSON that Grafana reads is what the code says, and asks only for metrics that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from ops.grafana.boards import BOARDS
from ops.grafana.build import FOLDER, rendered
from ops.grafana.panels import Board
from tests.ops.test_alerts import RULES
from tests.scraping import documented

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
