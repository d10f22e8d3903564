"""The JSON log: one object per line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

WRITER = """
import logging
from services.telemetry import logs

logs.configure("gateway", {form!r}, level="info")
log = logging.getLogger("services.somewhere")
log.info("answer broken off: request=%s worker=%s", "r1", "w1")
log.debug("not told")
log.warning("two\\nlines: %d", 2)
logs.log_event("request ended", "r2", outcome="answered", code=None, seconds=0.5, prompt={{"text": "hé"}})
try:
    raise ValueError("boom")
except ValueError:
    log.exception("it failed")
"""


def written(form: str) -> list[str]:
    """In a separate process, because logging is configured per process."""
    done = subprocess.run(
        [sys.executable, "-c", WRITER.format(form=form)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in written("json")]


def test_each_event_is_one_object(lines: list[dict[str, Any]]) -> None:
    events = [line["event"] for line in lines]
    assert events == ["answer broken off: request=r1 worker=w1", "two\nlines: 2", "request ended", "it failed"]
    assert {line["service"] for line in lines} == {"gateway"}
    assert [line["level"] for line in lines] == ["info", "warning", "info", "error"]
    assert all(line["time"].endswith("Z") and line["time"][10] == "T" for line in lines)


def test_a_line_about_a_request_has_its_id(lines: list[dict[str, Any]]) -> None:
    assert [line.get("request") for line in lines] == ["r1", None, "r2", None]


def test_fields_are_keys_of_the_object(lines: list[dict[str, Any]]) -> None:
    ended = lines[2]
    assert (ended["outcome"], ended["seconds"], ended["prompt"]) == ("answered", 0.5, {"text": "hé"})
    assert "code" not in ended


def test_a_traceback_is_a_field(lines: list[dict[str, Any]]) -> None:
    assert "ValueError: boom" in lines[3]["exception"]


def test_the_text_log_has_no_lines_per_request() -> None:
    lines = written("text")
    assert lines[0].endswith("INFO services.somewhere: answer broken off: request=r1 worker=w1")
    assert not any("request ended" in line for line in lines)
    assert lines[-1] == "ValueError: boom"
