from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    "module",
    [
        "services.protocol.engine",
        "services.protocol.jobs",
        "services.protocol.messages",
        "services.protocol.reports",
        "services.gateway.dialects.ollama",
        "services.gateway.dialects.openai",
    ],
)
def test_a_process_with_bounded_types_exits_without_an_error(module: str) -> None:
    """A process that dies while it exits counts as crashed. Freed memory is overwritten, so that a type that is freed twice is
    found."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env=os.environ | {"PYTHONMALLOC": "debug"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_no_test_imports_from_a_test_file() -> None:
    """Shared code belongs in other modules: stand-ins in tests/doubles/, helpers next to the tests."""
    importing = re.compile(r"^\s*(?:from|import) .*\btest_\w+", re.MULTILINE)
    found = [
        f"{path.relative_to(TESTS)}: {line.group().strip()}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in importing.finditer(path.read_text())
    ]
    assert found == []
