"""One line when an outage begins, one when it ends, however many loops wait it out."""

from __future__ import annotations

import asyncio
import logging

import pytest

from services.process.outage import INITIAL_WAIT_S, MAX_WAIT_S, Outage
from services.protocol.errors import Unavailable

log = logging.getLogger(__name__)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waits


async def test_two_loops_share_an_outage(caplog: pytest.LogCaptureFixture, slept: list[float]) -> None:
    caplog.set_level(logging.INFO)
    outage, gone = Outage(log), Unavailable("Redis does not answer")
    for loop in ("claims", "reports", "claims"):
        await outage.wait(loop, gone)
    assert outage.seconds > 0
    outage.over("claims")
    outage.over("inbox")
    assert outage.seconds > 0
    outage.over("reports")
    assert outage.seconds == 0
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert caplog.messages[0] == "outage: loop=claims error='Redis does not answer'"
    assert caplog.messages[1].startswith("outage over: seconds=")


async def test_each_wait_is_longer_up_to_a_limit_and_none_is_exact(slept: list[float]) -> None:
    outage, gone = Outage(log), Unavailable("Redis does not answer")
    for _ in range(12):
        await outage.wait("claims", gone)
    limits = [min(MAX_WAIT_S, INITIAL_WAIT_S * 2**number) for number in range(12)]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(slept, limits, strict=True))
    outage.over("claims")
    await outage.wait("claims", gone)
    assert slept[-1] <= INITIAL_WAIT_S
