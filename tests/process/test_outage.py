"""An outage is logged once when it begins and once when it ends, however many loops wait."""

from __future__ import annotations

import logging

import pytest

from services.process.outage import INITIAL_WAIT_S, MAX_WAIT_S, Outage
from services.protocol.errors import Unavailable

log = logging.getLogger(__name__)


class Waits(list[float]):
    """The waits of an Outage that does not take the time."""

    async def sleep(self, seconds: float) -> None:
        self.append(seconds)


async def test_loops_share_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outage, gone = Outage(log, sleep=Waits().sleep), Unavailable("Redis does not answer")
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


async def test_waits_grow_up_to_a_limit_with_jitter() -> None:
    waits = Waits()
    outage, gone = Outage(log, sleep=waits.sleep), Unavailable("Redis does not answer")
    for _ in range(12):
        await outage.wait("claims", gone)
    limits = [min(MAX_WAIT_S, INITIAL_WAIT_S * 2**number) for number in range(12)]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, limits, strict=True))
    outage.over("claims")
    await outage.wait("claims", gone)
    assert waits[-1] <= INITIAL_WAIT_S
