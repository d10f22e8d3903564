from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from services.cli.embedded import request_lines
from services.telemetry import logs
from tests.conditions import eventually


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log of a gateway that has answered before."""
    path = tmp_path / "gateway.log"
    path.write_text("2026-11-27 10:00:00,000 INFO corral.access: chat old: answered\n")
    return path


def line(request: str) -> str:
    """A log line as the gateway writes it."""
    record = logging.LogRecord(logs.ACCESS_LOGGER, logging.INFO, "", 0, request, (), None)
    return logging.Formatter(logs.TEXT).format(record) + "\n"


async def test_requests_are_shown_as_they_end(log: Path) -> None:
    shown: list[str] = []
    following = asyncio.create_task(request_lines.follow(log, shown.append))
    await asyncio.sleep(0)  # it has found the end of the log
    with log.open("a") as file:
        file.write("2026-11-27 18:30:01,000 WARNING services.gateway.requests.inflight: something else\n")
        file.write(line("chat smollm2:135m: answered"))
    await eventually(lambda: len(shown) == 1)
    assert shown[0].endswith("  chat smollm2:135m: answered")
    log.write_text(line("chat m: cancelled"))  # the log was truncated
    await eventually(lambda: len(shown) == 2)
    assert shown[1].endswith("  chat m: cancelled")
    with log.open("a") as file:
        file.writelines(line(f"chat {number}") for number in range(50))
    await eventually(lambda: shown[-1] == "... and 30 more requests")
    following.cancel()


def test_a_partial_line_waits_for_its_rest(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntw")
    text, position = request_lines.read_new(log, 0)
    assert (text, position) == ("one", 4)
    log.write_text("one\ntwo\n")
    assert request_lines.read_new(log, position) == ("two", 8)
