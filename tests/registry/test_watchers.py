from __future__ import annotations

import pytest

from services.protocol.jobs import JobProgress, JobSucceeded
from services.registry import watchers
from services.registry.watchers import Watchers


def progress(job: str, completed: int = 0) -> JobProgress:
    return JobProgress(job, "pulling 74701a8c35f6", completed=completed)


async def test_a_watcher_starts_with_the_latest_progress() -> None:
    watching = Watchers()
    watching.publish(progress("a", 1))
    watching.publish(progress("a", 2))
    with watching.watch("a") as events:
        watching.publish(JobSucceeded("a", "n1", None))
        assert [await events.get(), await events.get()] == [progress("a", 2), JobSucceeded("a", "n1", None)]
    with watching.watch("a") as events:
        assert events.empty(), "the job has ended"


async def test_progress_is_kept_of_the_most_recent_jobs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome of a job may never arrive."""
    monkeypatch.setattr(watchers, "MAX_LATEST", 2)
    watching = Watchers()
    for job in ("a", "b", "a", "c"):
        watching.publish(progress(job))
    for job, kept in (("a", 1), ("b", 0), ("c", 1)):
        with watching.watch(job) as events:
            assert events.qsize() == kept, job
