from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.placement import Evict, Place, Resident, Room, Wait, Want, free_bytes, never, place

GIB = 1024**3


def room(node: str = "n1", **changes: object) -> Room:
    plain = Room(node, ready=True, usable=8 * GIB, available=8 * GIB, disk_free=100 * GIB, holds=True)
    return replace(plain, **changes)  # type: ignore[arg-type]


def resident(replica: str, **changes: object) -> Resident:
    plain = Resident(replica, "n1", 3 * GIB, settled=True, leaving=False, evictable=True, unused_ms=0)
    return replace(plain, **changes)  # type: ignore[arg-type]


WANT = Want(memory_bytes=4 * GIB, file_bytes=2 * GIB, fetchable=False)
FETCHABLE = replace(WANT, fetchable=True)


@pytest.mark.parametrize(
    ("rooms", "chosen"),
    [
        ([room()], Place("n1", fetch=False)),
        ([room("n1"), room("n2", usable=9 * GIB, available=9 * GIB)], Place("n2", fetch=False)),
        ([room("n1"), room("n2")], Place("n1", fetch=False)),
        ([room("n1"), room("n2", usable=99 * GIB, available=99 * GIB, holds=False)], Place("n1", fetch=False)),
    ],
    ids=["the only one", "the least loaded", "the first of equals", "rather one that holds the file"],
)
def test_a_fit_node_is_chosen(rooms: list[Room], chosen: Place) -> None:
    assert place(FETCHABLE, rooms, []).outcome == chosen


def test_the_file_is_fetched_where_nobody_with_memory_holds_it() -> None:
    assert place(FETCHABLE, [room("n1", usable=GIB), room("n2", holds=False)], []).outcome == Place("n2", fetch=True)


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (room(ready=False), "n1 is lost"),
        (room(holds=False), "n1 does not hold the model's file"),
        (room(usable=GIB), "n1 has 1.0 GiB of memory for models, 4.0 GiB are needed"),
        (room(available=GIB), "n1 has 1.0 GiB of memory free, 4.0 GiB are needed"),
    ],
    ids=["lost", "no file", "too small", "full"],
)
def test_a_refused_node_says_why(refused: Room, reason: str) -> None:
    placement = place(WANT, [refused], [])
    assert placement.outcome == Wait()
    assert placement.reason == reason


def test_a_full_disk_takes_no_file() -> None:
    assert place(FETCHABLE, [room(holds=False, disk_free=GIB)], []).reason == (
        "n1 has 1.0 GiB of disk free, the model's file takes 2.0 GiB"
    )


def test_no_node_at_all_is_a_reason_too() -> None:
    assert place(WANT, [], []).reason == "no node has reported yet"


def test_what_is_promised_counts_before_it_shows() -> None:
    starting = resident("r1", settled=False, memory_bytes=5 * GIB)
    assert free_bytes(room(), [starting]) == 3 * GIB
    # A settled one's weights may lie in the page cache, which the machine calls available.
    assert free_bytes(room(), [resident("r1", memory_bytes=5 * GIB)]) == 3 * GIB
    # Somebody else's memory shows in what the machine says alone.
    assert free_bytes(room(available=2 * GIB), []) == 2 * GIB
    assert free_bytes(room(available=None), [starting]) == 3 * GIB


@pytest.mark.parametrize(
    ("residents", "outcome"),
    [
        ([resident("a", unused_ms=1), resident("b", unused_ms=2)], Evict("n1", ("b",))),
        ([resident("a", unused_ms=1), resident("b", unused_ms=2, evictable=False)], Evict("n1", ("a",))),
        ([resident("a", evictable=False), resident("b", evictable=False)], Wait()),
        ([resident("a"), resident("b", leaving=True, evictable=False)], Wait()),
        (
            [resident(name, memory_bytes=2 * GIB, unused_ms=age) for name, age in (("a", 3), ("b", 1), ("c", 2))],
            Evict("n1", ("a",)),
        ),
        (
            [resident(name, memory_bytes=GIB, unused_ms=age) for name, age in zip("abcdefgh", range(8), strict=True)],
            Evict("n1", ("h", "g", "f", "e")),
        ),
    ],
    ids=[
        "the longest unused",
        "not the pinned or busy one",
        "nobody can go",
        "one goes already",
        "one is enough",
        "several, and no more",
    ],
)
def test_idle_replicas_make_room(residents: list[Resident], outcome: Evict | Wait) -> None:
    assert place(WANT, [room()], residents).outcome == outcome


def test_room_is_made_where_the_fewest_go() -> None:
    crowd = [resident(name, memory_bytes=2 * GIB) for name in "abcd"]
    single = resident("z", node="n2", memory_bytes=5 * GIB)
    assert place(WANT, [room("n1"), room("n2")], [*crowd, single]).outcome == Evict("n2", ("z",))


@pytest.mark.parametrize(
    ("want", "rooms", "reason"),
    [
        (WANT, [], None),
        (WANT, [room()], None),
        (WANT, [room(ready=False)], None),
        (WANT, [room(holds=False)], "its file is on no node"),
        (WANT, [room(usable=GIB)], "it needs 4.0 GiB of memory and the largest node, n1, has 1.0 GiB for models"),
        (
            WANT,
            [room(usable=GIB), room("n2", holds=False)],
            "it needs 4.0 GiB of memory and the largest node, n1, has 1.0 GiB for models",
        ),
        (FETCHABLE, [room(usable=GIB), room("n2", holds=False)], None),
    ],
    ids=[
        "no node yet",
        "one could",
        "a lost one could",
        "no file",
        "too small",
        "too small with the file",
        "fetched elsewhere",
    ],
)
def test_what_can_never_be(want: Want, rooms: list[Room], reason: str | None) -> None:
    assert never(want, rooms) == reason


sizes = st.integers(0, 16)
names = st.sampled_from(["n1", "n2", "n3"])
rooms_of_all_kinds = st.lists(
    st.builds(Room, names, st.booleans(), sizes, st.none() | sizes, sizes, st.booleans()), unique_by=lambda room: room.node
)
residents_of_all_kinds = st.lists(
    st.builds(
        Resident,
        st.uuids().map(str),
        names,
        sizes,
        st.booleans(),
        leaving=st.booleans(),
        evictable=st.booleans(),
        unused_ms=sizes,
    ),
    max_size=8,
)


@given(st.builds(Want, st.integers(1, 16), sizes, st.booleans()), rooms_of_all_kinds, residents_of_all_kinds)
def test_never_over_memory_and_a_reason_for_every_refusal(want: Want, rooms: list[Room], residents: list[Resident]) -> None:
    placement = place(want, rooms, residents)
    by_name = {room.node: room for room in rooms}
    match placement.outcome:
        case Place(node, fetch):
            chosen = by_name[node]
            assert chosen.ready
            assert free_bytes(chosen, residents) >= want.memory_bytes
            assert chosen.holds or (fetch and want.fetchable and chosen.disk_free >= want.file_bytes)
            assert set(placement.refusals) == set(by_name) - {node}
        case Evict(node, victims):
            assert set(placement.refusals) == set(by_name)
            gone = [resident for resident in residents if resident.replica in victims]
            assert all(resident.evictable and not resident.leaving and resident.node == node for resident in gone)
            assert by_name[node].usable >= want.memory_bytes
            # None of them goes in vain.
            last = gone[-1:] and min(gone, key=lambda resident: resident.unused_ms)
            assert len(victims) >= 1
            assert last
        case Wait():
            assert set(placement.refusals) == set(by_name)
    assert all(placement.refusals.values())
