"""The table of `make coverage`: the share of statements that the suite runs, by package, and the files with the most others.

.venv/bin/python -m tests.coverage_table
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: How many files are listed.
LISTED = 15


@dataclass(frozen=True)
class Counted:
    """`run` of `statements`."""

    run: int
    statements: int

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.run + other.run, self.statements + other.statements)

    @property
    def share(self) -> float:
        return self.run / self.statements if self.statements else 1.0


def by_package(files: dict[str, Counted]) -> dict[str, Counted]:
    """Files of `services/gateway/dialects/openai/` count for `services/gateway/dialects`: packages up to three names deep."""
    packages: defaultdict[str, Counted] = defaultdict(lambda: Counted(0, 0))
    for path, counted in files.items():
        packages["/".join(Path(path).parent.parts[:3])] += counted
    return dict(sorted(packages.items()))


def least_run(files: dict[str, Counted], number: int) -> list[tuple[str, Counted]]:
    return sorted(files.items(), key=lambda item: item[1].run - item[1].statements)[:number]


def table(files: dict[str, Counted]) -> str:
    """Markdown."""
    rows = [*by_package(files).items(), ("all", sum(files.values(), Counted(0, 0)))]
    lines = ["| package | statements | run |", "|---|---|---|"]
    lines += [f"| `{name}` | {counted.statements:,} | {counted.share:.0%} |" for name, counted in rows]
    lines += ["", "Files with the most statements that are not run:", ""]
    lines += [
        f"- `{path}`: {counted.statements - counted.run} of {counted.statements}" for path, counted in least_run(files, LISTED)
    ]
    return "\n".join(lines)


def counted(report: dict[str, Any]) -> dict[str, Counted]:
    """By path, from the JSON of coverage.py."""
    return {
        path: Counted(file["summary"]["covered_lines"], file["summary"]["num_statements"])
        for path, file in report["files"].items()
    }


if __name__ == "__main__":
    print(table(counted(json.loads(Path(".coverage.json").read_text()))))
