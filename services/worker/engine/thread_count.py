"""ThreadCount: decides how many threads compute the next batch from how many cores were available. Pure."""

from __future__ import annotations

#: The threads of a batch wait for each other hundreds of times, so one that shares its core slows them all. A core is given up
#: when other processes use at least this fraction of it ...
TAKEN_CORES = 0.6
#: ... and used again when they use less than this fraction.
FREE_CORES = 0.4

#: How long other processes must use a core before it is given up.
CROWDED_AFTER_S = 0.4
#: Longest time that a core must be free before it is used, as a multiple of `patience_s`. The time doubles whenever a core is
#: lost again soon.
MAX_PATIENCE_FACTOR = 16
#: A core counts as lost soon if it is given up within this time after it was taken.
SAMPLE_WINDOW_S = 5.0


class ThreadCount:
    """`now` is the number of threads, between 1 and `most`.

    Gives up cores fast, takes them slowly, and never takes a core that is in use. This way the workers on a machine divide its
    cores without coordination. `patience_s` is how long a core must be free before it is used. It differs between workers, so
    that two of them do not take the same core at the same moment.
    """

    now: int
    _crowded_s: float
    _roomy_s: float
    _patience_s: float
    _kept_s: float

    def __init__(self, most: int, *, patience_s: float) -> None:
        self._most = most
        self._min_patience_s = patience_s
        self.restart()

    def observe(self, cores: float, *, seconds: float) -> None:
        """Records that on average `cores` cores were available to this process over the last `seconds`."""
        self._kept_s += seconds
        self._crowded_s = self._crowded_s + seconds if self._is_crowded(cores) else 0.0
        self._roomy_s = self._roomy_s + seconds if self._is_roomy(cores) else 0.0
        if self._crowded_s >= CROWDED_AFTER_S:
            self._give_up(cores)
        elif self._roomy_s >= self._patience_s:
            self._take(cores)

    def restart(self) -> None:
        """Starts with all cores and no memory of lost ones, as after a pause. Workers that took the free cores during the pause will
        give up a share."""
        self.now = self._most
        self._crowded_s = self._roomy_s = 0.0
        self._patience_s = self._min_patience_s
        self._kept_s = SAMPLE_WINDOW_S

    def _is_crowded(self, cores: float) -> bool:
        return self.now > 1 and cores <= self.now - TAKEN_CORES

    def _is_roomy(self, cores: float) -> bool:
        return self.now < self._most and cores > self.now + 1 - FREE_CORES

    def _give_up(self, cores: float) -> None:
        lost_soon = self._kept_s < SAMPLE_WINDOW_S
        longer_s = min(2 * self._patience_s, MAX_PATIENCE_FACTOR * self._min_patience_s)
        self._patience_s = longer_s if lost_soon else self._min_patience_s
        self.now = max(1, min(self.now - 1, int(cores + FREE_CORES)))
        self._crowded_s = 0.0

    def _take(self, cores: float) -> None:
        self.now = min(self._most, int(cores + FREE_CORES))
        self._roomy_s = self._kept_s = 0.0
