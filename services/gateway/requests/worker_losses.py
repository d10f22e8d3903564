"""How many workers were lost while they held one request, and whether the request may be the cause."""

from __future__ import annotations

#: A request that this many workers crashed with, one after the other and without a further token, is likely to be the cause.
MAX_CRASHES = 2

#: Workers that were killed or cut off say nothing about the request. After this many losses of any kind it fails all the same.
MAX_LOSSES = 16


class WorkerLosses:
    """`total` counts every loss. `crashes` counts the workers that crashed since the last token, `vanished` names those that
    were lost since then for an unknown reason."""

    def __init__(self) -> None:
        self.total = 0
        self.crashes = 0
        self.vanished: list[str] = []

    @property
    def are_too_many(self) -> bool:
        return self.crashes >= MAX_CRASHES or self.total >= MAX_LOSSES

    def count(self, worker: str, *, crashed: bool) -> None:
        self.total += 1
        if crashed:
            self.crashes += 1
        else:
            self.vanished.append(worker)

    def count_crashed(self, workers: frozenset[str]) -> None:
        """These workers crashed. Some of them may have been counted as vanished: a worker's lease can end before its process."""
        self.crashes += len(workers & set(self.vanished))
        self.vanished = [worker for worker in self.vanished if worker not in workers]

    def clear_blame(self) -> None:
        """The answer has got further."""
        self.crashes = 0
        self.vanished = []
