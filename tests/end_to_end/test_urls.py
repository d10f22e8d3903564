"""A model from a web server, from the command line to an answer."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests.conditions import eventually_sync
from tests.doubles.file_server import FileServer, serve_file
from tests.end_to_end.conftest import Platform
from tests.ggufs import write_gguf
from tests.node.downloading import MIB, padded

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FileServer]:
    with serve_file(padded(write_gguf(tmp_path / "tiny.gguf"), 24 * MIB)) as files:
        yield files


@pytest.fixture
def name(platform: Platform) -> Iterator[str]:
    yield "from-url:v1"
    platform.corral("rm", "from-url:v1")


def test_a_model_from_a_url_answers(platform: Platform, http: httpx.Client, files: FileServer, name: str) -> None:
    source = f"{files.signed_url}?token=secret#sha256={hashlib.sha256(files.data).hexdigest()}"
    done = platform.corral("pull", source, "--as", name)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "success"
    shown = platform.corral("versions", name).stdout
    assert f"{files.signed_url}?..." in shown
    assert "secret" not in shown
    answer = http.post("/api/generate", json={"model": name, "prompt": "a", "options": {"num_predict": 2}, "stream": False})
    assert answer.json()["eval_count"] == 2


def test_ollamas_client_reads_the_progress(platform: Platform, files: FileServer, name: str) -> None:
    files.bytes_per_s = 2 * MIB
    with ollama.Client(host=platform.url) as client:
        lines: list[dict[str, Any]] = [line.model_dump(exclude_none=True) for line in client.pull(files.url, stream=True)]
    platform.corral("rm", "model")
    assert lines[0] == {"status": "pulling manifest"}
    assert [line["status"] for line in lines[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]
    bars = lines[1:-3]
    assert len(bars) > 2
    assert {(bar["status"], bar["digest"], bar["total"]) for bar in bars} == {
        (f"pulling {bars[0]['digest'][7:19]}", bars[0]["digest"], 24 * MIB)
    }
    completed = [bar.get("completed", 0) for bar in bars]
    assert completed == sorted(completed)
    assert completed[-1] == 24 * MIB


def test_a_pull_outlives_its_command_and_is_cancelled(platform: Platform, files: FileServer, name: str) -> None:
    files.bytes_per_s, files.limit = MIB, 8 * MIB
    command = [sys.executable, "-m", "services.cli", "pull", files.url, "--as", name]
    pull = subprocess.Popen(command, env=platform.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    eventually_sync(lambda: files.sent > MIB, timeout_s=30)
    pull.send_signal(2)
    _, said = pull.communicate(timeout=30)
    assert pull.returncode == 130
    assert f"The download continues. corral pull --cancel {name} ends it." in said
    eventually_sync(lambda: files.sent >= 8 * MIB, timeout_s=60)
    assert platform.corral("pull", "--cancel", name).returncode == 0
    assert platform.corral("pull", "--cancel", name).stderr == f"Error: no pull of '{name}' is running\n"

    files.limit = None
    assert platform.corral("pull", files.url, "--as", name).returncode == 0
    assert files.sent < (24 + 5) * MIB, "what arrived before it was cancelled is not fetched again"
