"""The limit on open files."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
from services.process.descriptors import raise_descriptor_limit
limit = raise_descriptor_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE), limit)
"""


def test_the_soft_limit_is_raised_to_the_hard_limit() -> None:
    script = 'ulimit -Sn 64; ulimit -Hn 512; exec "$0" -c "$1"'
    finished = subprocess.run(["bash", "-c", script, sys.executable, PROGRAM], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["512", "512", "512"]
