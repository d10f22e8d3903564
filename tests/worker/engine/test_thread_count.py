"""How many threads a worker computes with while other processes use the machine."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.worker.engine.thread_count import CROWDED_AFTER_S, MAX_PATIENCE_FACTOR, TAKEN_CORES, ThreadCount

WINDOW_S = 0.15
PATIENCE_S = 1.0
CORES = st.integers(1, 64)


def count_after(count: ThreadCount, cores: float, *, seconds: float) -> int:
    """The count after as many windows as fit in these seconds."""
    for _ in range(round(seconds / WINDOW_S)):
        count.observe(cores, seconds=WINDOW_S)
    return count.now


def share(mine: int, others: int, cores: int) -> float:
    """The cores that a fair kernel gives to `mine` busy threads next to `others`, including the idle cores."""
    return mine * min(1.0, cores / (mine + others)) + max(0, cores - mine - others)


def settled(cores: int, workers: list[ThreadCount], *, loops: int, seconds: float) -> list[list[int]]:
    """The workers' threads at each moment, while all of them compute next to `loops` busy threads."""
    history = []
    for _ in range(round(seconds / WINDOW_S)):
        now = [worker.now for worker in workers]
        for worker in workers:
            others = sum(now) - worker.now + loops
            worker.observe(share(worker.now, others, cores), seconds=WINDOW_S)
        history.append([worker.now for worker in workers])
    return history


@given(cores=CORES)
def test_all_cores_of_an_idle_machine_are_used(cores: int) -> None:
    assert count_after(ThreadCount(cores, patience_s=PATIENCE_S), cores, seconds=60) == cores


@given(cores=CORES, busy=st.floats(0, 0.45))
def test_a_little_other_load_costs_no_core(cores: int, busy: float) -> None:
    assert count_after(ThreadCount(cores, patience_s=PATIENCE_S), cores - busy, seconds=60) == cores


@given(cores=CORES, loops=st.integers(0, 64))
def test_busy_processes_keep_their_cores(cores: int, loops: int) -> None:
    worker = ThreadCount(cores, patience_s=PATIENCE_S)
    settled(cores, [worker], loops=loops, seconds=30)
    assert worker.now == 1 or share(worker.now, loops, cores) > worker.now - TAKEN_CORES


@given(cores=CORES, workers=st.integers(1, 6), loops=st.integers(0, 4))
def test_several_workers_reach_a_stable_division(cores: int, workers: int, loops: int) -> None:
    counts = [ThreadCount(cores, patience_s=PATIENCE_S + number / 3) for number in range(workers)]
    history = settled(cores, counts, loops=loops, seconds=120)
    last = history[-1]
    for mine in last:
        assert mine == 1 or share(mine, sum(last) - mine + loops, cores) > mine - TAKEN_CORES
    assert max(last) - min(last) <= max(1, cores // 2)
    assert all(now == last for now in history[-100:])


@given(cores=st.integers(2, 64), loops=st.integers(1, 64))
def test_all_cores_are_used_again_after_the_load_ends(cores: int, loops: int) -> None:
    worker = ThreadCount(cores, patience_s=PATIENCE_S)
    settled(cores, [worker], loops=loops, seconds=10)
    assert count_after(worker, cores, seconds=2 * MAX_PATIENCE_FACTOR * PATIENCE_S) == cores


def test_a_short_load_costs_no_core() -> None:
    worker = ThreadCount(2, patience_s=PATIENCE_S)
    for _ in range(100):
        count_after(worker, 1.0, seconds=WINDOW_S)
        assert count_after(worker, 2.0, seconds=WINDOW_S) == 2
    assert count_after(worker, 1.0, seconds=CROWDED_AFTER_S + WINDOW_S) == 1


def test_recurring_load_makes_retries_rarer() -> None:
    """Each retry has a cost: the core is shared until it is given up again."""
    worker = ThreadCount(2, patience_s=PATIENCE_S)
    tries = []
    for window in range(round(120 / WINDOW_S)):
        before = worker.now
        worker.observe(1.0 if worker.now == 2 else 2.0, seconds=WINDOW_S)
        if worker.now > before:
            tries.append(window * WINDOW_S)
    waits = [later - earlier for earlier, later in pairwise(tries)]
    assert all(later > earlier - WINDOW_S for earlier, later in pairwise(waits))
    assert waits[-1] > MAX_PATIENCE_FACTOR * PATIENCE_S


@given(cores=CORES, loops=st.integers(1, 64))
def test_load_before_a_pause_does_not_matter_after_it(cores: int, loops: int) -> None:
    worker, other = ThreadCount(cores, patience_s=PATIENCE_S), ThreadCount(cores, patience_s=PATIENCE_S)
    settled(cores, [worker], loops=loops, seconds=60)
    worker.restart()
    assert settled(cores, [worker], loops=loops, seconds=60) == settled(cores, [other], loops=loops, seconds=60)


def test_a_worker_gets_its_share_after_a_pause() -> None:
    running, paused = ThreadCount(8, patience_s=1.0), ThreadCount(8, patience_s=1.5)
    count_after(paused, 1.0, seconds=1)
    assert (running.now, paused.now) == (8, 1)
    paused.restart()
    settled(8, [running, paused], loops=0, seconds=10)
    assert running.now == paused.now == 4
