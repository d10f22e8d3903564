"""Which slot a sequence gets, how much of it is cached, and what is evicted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.worker.engine.slots import Cut, Plan, Share, SlotPool, common_prefix


def occupy(pool: SlotPool, tokens: list[int]) -> Plan:
    """A sequence with these tokens runs in a slot and has computed all of them."""
    plan = pool.plan(tokens)
    pool.acquire(plan, tokens, request="r")
    assert pool.make_room(len(tokens) - plan.keep)
    pool.grow(plan.target.id, len(tokens) - plan.keep)
    return plan


def pool_holding(*contents: list[int], partial_reuse: bool = True, shareable: bool = True, cells: int = 100) -> SlotPool:
    """Slots 0, 1, ... hold the contents and were released in that order."""
    pool = SlotPool(len(contents), cells, partial_reuse=partial_reuse, shareable=shareable)
    for content in contents:
        occupy(pool, [*content])
    for slot in range(len(contents)):
        pool.release(slot)
    pool.take_operations()
    return pool


def choice(plan: Plan) -> tuple[int, int, int]:
    return plan.target.id, plan.source.id, plan.keep


def test_a_slot_whose_tokens_are_a_prefix_is_reused() -> None:
    pool = pool_holding([1, 2, 9], [1, 2, 3, 4], [5, 6])
    assert choice(pool.plan([1, 2, 3, 4, 5, 6])) == (1, 1, 4)


def test_a_request_counts_as_cached_while_a_slot_holds_part_of_it() -> None:
    pool = SlotPool(2, 8)
    for name, tokens in (("a", [1, 2, 3]), ("b", [4, 5, 6])):
        plan = pool.plan(tokens)
        pool.acquire(plan, tokens, request=name)
        pool.grow(plan.target.id, 3)
        pool.release(plan.target.id)
    assert pool.cached_requests == {"a", "b"}
    assert pool.make_room(4)
    assert pool.cached_requests == {"b"}
    pool.acquire(pool.plan([7]), [7], request="c")
    assert pool.cached_requests == {"b", "c"}
    pool.acquire(pool.plan([8]), [8], request="d")
    assert pool.cached_requests == {"c", "d"}


@given(st.lists(st.integers(0, 2), min_size=2, max_size=40), st.booleans(), st.booleans(), st.booleans())
def test_another_isolation_domain_reuses_no_tokens(
    tokens: list[int], partial_reuse: bool, shareable: bool, running: bool
) -> None:
    pool = SlotPool(2, 100, partial_reuse=partial_reuse, shareable=shareable)
    plan = pool.plan(tokens, domain="red")
    pool.acquire(plan, tokens, request="r", domain="red")
    pool.grow(plan.target.id, len(tokens) - 1)
    if not running:
        pool.release(plan.target.id)
    for domain in ("", "blue"):
        assert pool.plan(tokens, domain=domain).keep == 0
        assert not pool.is_worth_waiting(tokens, domain=domain)


def test_the_last_token_is_always_computed_again() -> None:
    assert pool_holding([1, 2, 3]).plan([1, 2, 3]).keep == 2


def test_a_prefix_of_a_long_text_is_shared_with_another_slot() -> None:
    long = list(range(1, 40))
    pool = pool_holding(long, [7, 7])
    plan = pool.plan([1, 2, 3, 99])
    assert choice(plan) == (1, 0, 3)
    pool.acquire(plan, [1, 2, 3, 99], request="r")
    assert pool.take_operations() == (Cut(1, 0), Share(0, 1, 3))
    pool.release(1)
    assert pool.plan([*long, 50]).keep == len(long)


def test_a_prefix_is_shared_from_a_slot_in_use() -> None:
    pool = SlotPool(2, 100)
    occupy(pool, [1, 2, 3, 4])
    assert choice(pool.plan([1, 2, 3, 9])) == (1, 0, 3)


def test_a_prefix_is_worth_waiting_for_while_it_is_computed() -> None:
    pool, prefix = SlotPool(2, 200), list(range(1, 101))
    pool.acquire(pool.plan(prefix), prefix, request="r")
    assert pool.is_worth_waiting([*prefix, 7])
    assert not pool.is_worth_waiting([5, 6, 7])
    pool.grow(0, 100)
    assert not pool.is_worth_waiting([*prefix, 7])


def test_without_a_useful_prefix_the_least_recently_used_slot_is_taken() -> None:
    pool = pool_holding([1, 1, 1], [2, 2], [3, 3, 3, 3])
    assert choice(pool.plan([9, 9])) == (0, 0, 0)


def test_sharing_a_prefix_counts_as_a_use_of_its_slot() -> None:
    long = list(range(1, 40))
    pool = pool_holding(long, [2, 2], [3, 3])
    plan = pool.plan([1, 2, 3, 99])
    assert choice(plan) == (1, 0, 3)
    pool.acquire(plan, [1, 2, 3, 99], request="r")
    assert choice(pool.plan([9, 9])) == (2, 2, 0)


def test_without_sharing_an_empty_slot_beats_a_loss_larger_than_the_gain() -> None:
    pool = pool_holding([1, 2, 3, 4, 5, 6, 7, 8], [], shareable=False)
    assert choice(pool.plan([1, 2, 30, 31])) == (1, 1, 0)


def test_a_cache_that_cannot_be_truncated_is_reused_whole_or_not() -> None:
    pool = pool_holding([1, 2, 3], partial_reuse=False)
    assert pool.plan([1, 2, 9, 9]).keep == 0
    assert pool.plan([1, 2, 3, 4]).keep == 3


def test_room_is_made_by_evicting_the_least_recently_used() -> None:
    pool = pool_holding([1, 1, 1], [2, 2], [3, 3, 3], cells=8)
    assert pool.make_room(4)
    assert pool.take_operations() == (Cut(0, 0), Cut(1, 0))
    assert not pool.make_room(9)


def test_shared_cells_are_free_only_after_the_last_holder_releases_them() -> None:
    pool = SlotPool(2, 10)
    occupy(pool, [1, 2, 3, 4, 5, 6])
    occupy(pool, [1, 2, 3, 4, 5, 9])
    pool.release(0)
    assert not pool.make_room(5)  # seven cells are in use, five of them by both
    pool.release(1)
    assert pool.make_room(10)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_is_the_longest(a: list[int], b: list[int]) -> None:
    length = common_prefix(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]
