from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.worker.engine.slots import SlotPool, common_prefix


def pool_holding(*contents: list[int], partial_reuse: bool = True) -> SlotPool:
    """Slots 0, 1, ... hold the contents, released in that order."""
    pool = SlotPool(len(contents), partial_reuse=partial_reuse)
    taken = [pool.acquire([0, 0]).slot for _ in contents]
    for slot, tokens in zip(sorted(taken), contents, strict=True):
        pool.release(slot, tokens)
    return pool


def test_the_slot_with_the_longest_common_prefix_is_taken() -> None:
    pool = pool_holding([1, 2, 9], [1, 2, 3, 4], [5, 6])
    taken = pool.acquire([1, 2, 3, 4, 5, 6])
    assert (taken.slot, taken.keep) == (1, 4)


def test_the_last_token_is_always_computed_again() -> None:
    taken = pool_holding([1, 2, 3]).acquire([1, 2, 3])
    assert taken.keep == 2


def test_an_empty_slot_is_taken_rather_than_one_that_would_lose_more_than_it_spares() -> None:
    pool = pool_holding([1, 2, 3, 4, 5, 6, 7, 8], [])
    taken = pool.acquire([1, 2, 30, 31])
    assert (taken.slot, taken.keep) == (1, 0)


def test_without_a_useful_prefix_the_least_recently_used_goes() -> None:
    pool = pool_holding([1, 1, 1], [2, 2], [3, 3, 3, 3])
    assert pool.acquire([9, 9]).slot == 0


def test_memory_that_cannot_be_cut_back_is_reused_whole_or_not_at_all() -> None:
    pool = pool_holding([1, 2, 3], partial_reuse=False)
    taken = pool.acquire([1, 2, 9, 9])
    assert taken.keep == 0
    pool.release(taken.slot, [1, 2, 3])
    assert pool.acquire([1, 2, 3, 4]).keep == 3


def test_forgotten_slots_hold_nothing() -> None:
    pool = pool_holding([1, 2], [])
    assert pool.forget_idle() == [0]
    assert pool.acquire([1, 2, 3]).keep == 0


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    length = common_prefix(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=6), st.integers(0, 3)), max_size=30))
def test_no_slot_is_given_twice_and_what_is_kept_is_really_there(steps: list[tuple[list[int], int]]) -> None:
    pool = SlotPool(3)
    contents: dict[int, list[int]] = {slot: [] for slot in range(3)}
    busy: list[tuple[int, list[int]]] = []
    for tokens, release in steps:
        if pool.num_idle:
            taken = pool.acquire(tokens)
            assert taken.slot not in [slot for slot, _ in busy]
            assert contents[taken.slot][: taken.keep] == tokens[: taken.keep]
            assert taken.keep < len(tokens)
            busy.append((taken.slot, tokens))
        if release < len(busy):
            slot, held = busy.pop(release)
            contents[slot] = held
            pool.release(slot, held)
        assert pool.num_idle == 3 - len(busy)
