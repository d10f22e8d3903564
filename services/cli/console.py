"""Where commands write: answers and tables to stdout, everything about them to stderr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console

out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
err = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=True)

COLUMN_GAP = "    "


def print_json(value: Any) -> None:
    out.print_json(data=value, ensure_ascii=False)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Ollama's tables: no borders, and never cut to the terminal's width, so that they can be piped."""
    table = [headers, *rows]
    widths = [max(cell_len(row[column]) for row in table) for column in range(len(headers))]
    for row in table:
        cells = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        out.print(COLUMN_GAP.join(cells).rstrip())
