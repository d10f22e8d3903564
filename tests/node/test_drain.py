"""The drain that ends workers of every runtime."""

from __future__ import annotations

import threading
import time

import pytest

from services.node import drain
from services.node.drain import Drain


class ScriptedWorker:
    """Ends `exits_after_s` after it was asked to; None: only if it is killed."""

    def __init__(self, *, exits_after_s: float | None) -> None:
        self._exits_after_s = exits_after_s
        self._ends_at: float | None = None
        self.calls: list[str] = []

    @property
    def has_ended(self) -> bool:
        return self._ends_at is not None and time.monotonic() >= self._ends_at

    def terminate(self) -> None:
        self.calls.append("terminate")
        if self._exits_after_s is not None:
            self._ends_at = time.monotonic() + self._exits_after_s

    def kill(self) -> None:
        self.calls.append("kill")
        self._ends_at = time.monotonic()


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "KILL_GRACE_S", 0.2)


def test_workers_that_exit_are_not_killed() -> None:
    workers = [ScriptedWorker(exits_after_s=delay_s) for delay_s in (0, 0.1)]
    Drain(10).end(workers)
    assert [worker.calls for worker in workers] == [["terminate"], ["terminate"]]
    assert all(worker.has_ended for worker in workers)


def test_a_worker_is_killed_after_the_drain_deadline_and_the_grace_period() -> None:
    worker = ScriptedWorker(exits_after_s=None)
    started_s = time.monotonic()
    Drain(0.1).end([worker])
    assert worker.calls == ["terminate", "kill"]
    assert time.monotonic() - started_s >= 0.3


def test_hurry_ends_a_drain_that_is_running_and_later_ones() -> None:
    draining = Drain(600)
    hurry = threading.Timer(0.1, draining.hurry)
    hurry.start()
    for worker in (ScriptedWorker(exits_after_s=None), ScriptedWorker(exits_after_s=600)):
        draining.end([worker])
        assert worker.calls == ["terminate", "kill"]
    hurry.join()


def test_a_worker_that_survives_its_kill_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = ScriptedWorker(exits_after_s=None)
    monkeypatch.setattr(worker, "kill", lambda: worker.calls.append("kill"))
    Drain(0).end([worker])
    assert worker.calls == ["terminate", "kill"]
