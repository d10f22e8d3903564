"""Console output: answers and tables go to stdout, everything else to stderr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console

out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
err = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=True)

#: Width of a table that isn't printed on a terminal, in cells.
PIPE_WIDTH = 100

COLUMN_GAP = 4
#: Column gap of a table that would otherwise be too wide.
NARROW_GAP = 2
#: Columns are not narrowed below this width.
MIN_COLUMN_WIDTH = 8


def print_json(value: Any) -> None:
    out.print_json(data=value, ensure_ascii=False)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table without borders, like Ollama's. On a narrow terminal the widest columns are cut; piped output never is."""
    table = [headers, *rows]
    widths = [max(cell_len(row[column]) for row in table) for column in range(len(headers))]
    room = out.width if out.is_terminal else PIPE_WIDTH
    gaps = len(headers) - 1
    gap = COLUMN_GAP if sum(widths) + COLUMN_GAP * gaps <= room else NARROW_GAP
    if out.is_terminal:
        widths = narrowed(widths, room - gap * gaps)
    for row in table:
        cells = [_fitted(cell, width) for cell, width in zip(row, widths, strict=True)]
        out.print((" " * gap).join(cells).rstrip())


def narrowed(widths: Sequence[int], room: int) -> list[int]:
    """Shrinks the widest columns until the table fits into `room`, or until none can shrink further."""
    result = list(widths)
    while sum(result) > room and max(result) > MIN_COLUMN_WIDTH:
        widest = result.index(max(result))
        result[widest] -= 1
    return result


def _fitted(cell: str, width: int) -> str:
    if cell_len(cell) <= width:
        return cell + " " * (width - cell_len(cell))
    return set_cell_size(cell, width - 1) + "…"
