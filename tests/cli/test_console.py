from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.cli.console import MIN_COLUMN_WIDTH, narrowed
from tests.cli.conftest import Corral
from tests.cli.terminal import Terminal
from tests.doubles.http_gateway import NODE, Answer, Gateway

LONG = NODE | {"name": "a-machine-with-a-long-name.example", "devices": [{"name": "NVIDIA H100 80GB HBM3"}]}


def test_a_wide_table_is_not_truncated_in_a_pipe(corral: Corral, gateway: Gateway) -> None:
    gateway.answer("GET /registry/v1/nodes", Answer(body={"nodes": [LONG]}))
    row = corral("nodes").out.splitlines()[1]
    assert row.startswith("a-machine-with-a-long-name.example  ready  2 ")
    assert "NVIDIA H100 80GB HBM3  3" in row


def test_a_table_fits_the_terminal(gateway: Gateway, environment: dict[str, str]) -> None:
    gateway.answer("GET /registry/v1/nodes", Answer(body={"nodes": [LONG]}))
    with Terminal(["nodes"], environment, columns=100) as terminal:
        assert terminal.wait() == 0
        lines = [line.rstrip() for line in terminal.output.splitlines() if line.strip()]
    assert len(lines) == 2
    assert "…" in lines[1]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12), st.integers(1, 200))
def test_only_the_widest_columns_are_narrowed(widths: list[int], room: int) -> None:
    result = narrowed(widths, room)
    assert sum(result) <= room or max(result) <= MIN_COLUMN_WIDTH
    assert all(new == old or new >= max(result) - 1 for old, new in zip(widths, result, strict=True))
    assert result == widths or sum(result) >= min(room, sum(widths))
