"""`python -m ops.grafana.build` writes every dashboard to ops/grafana/dashboards/, as Grafana reads it."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from ops.grafana.boards import BOARDS
from ops.grafana.panels import Board

FOLDER = Path(__file__).parent / "dashboards"


def rendered(board: Board) -> str:
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for stale in FOLDER.glob("*.json"):
        stale.unlink()
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(rendered(board))


if __name__ == "__main__":
    main()
