from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.control.placement import (
    ChosenNode,
    Evict,
    NodeCapacity,
    PlacedReplica,
    PlacementRequest,
    Wait,
    free_bytes,
    never,
    place,
)

GIB = 1024**3


def room(
    node: str = "n1",
    *,
    ready: bool = True,
    usable: int = 8 * GIB,
    available: int | None = 8 * GIB,
    disk_free: int = 100 * GIB,
    holds: bool = True,
    cores: int = 1,
    fetch_failed: bool = False,
) -> NodeCapacity:
    return NodeCapacity(node, ready, usable, available, disk_free, holds, cores, fetch_failed)


def replica(
    replica: str,
    *,
    node: str = "n1",
    memory_bytes: int = 3 * GIB,
    settled: bool = True,
    leaving: bool = False,
    evictable: bool = True,
    unused_ms: int = 0,
    active: bool = True,
    version: str = "",
) -> PlacedReplica:
    return PlacedReplica(replica, node, memory_bytes, settled, leaving, evictable, unused_ms, active, version)


WANT = PlacementRequest(memory_bytes=4 * GIB, file_bytes=2 * GIB, fetchable=False)
FETCHABLE = replace(WANT, fetchable=True)


@pytest.mark.parametrize(
    ("capacities", "chosen"),
    [
        ([room()], ChosenNode("n1", fetch=False)),
        ([room("n1"), room("n2", usable=9 * GIB, available=9 * GIB)], ChosenNode("n2", fetch=False)),
        ([room("n1"), room("n2")], ChosenNode("n1", fetch=False)),
        ([room("n1"), room("n2", usable=99 * GIB, available=99 * GIB, holds=False)], ChosenNode("n1", fetch=False)),
    ],
    ids=["the only one", "the least loaded", "the first of equals", "prefer a node with the file"],
)
def test_the_best_fit_is_chosen(capacities: list[NodeCapacity], chosen: ChosenNode) -> None:
    assert place(FETCHABLE, capacities, []).outcome == chosen


def test_the_file_is_fetched_if_no_node_with_memory_holds_it() -> None:
    assert place(FETCHABLE, [room("n1", usable=GIB), room("n2", holds=False)], []).outcome == ChosenNode("n2", fetch=True)


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (room(ready=False), "n1 is lost"),
        (
            room(holds=False),
            "n1 does not have the model's file and cannot fetch it, because its source is a path on another node or a URL with a query",
        ),
        (room(usable=GIB), "n1 has 1.0 GiB of memory for models, 4.0 GiB are needed"),
        (room(available=GIB), "n1 has 1.0 GiB of memory free, 4.0 GiB are needed"),
    ],
    ids=["lost", "no file", "too small", "full"],
)
def test_a_refused_node_has_a_reason(refused: NodeCapacity, reason: str) -> None:
    placement = place(WANT, [refused], [])
    assert placement.outcome == Wait()
    assert placement.reason == reason


VERSIONED = replace(FETCHABLE, version="v", memory_bytes=GIB)


@pytest.mark.parametrize(
    ("capacities", "placed", "chosen"),
    [
        ([room("n1"), room("n2", holds=False)], [replica("a", version="v")], ChosenNode("n2", fetch=True)),
        ([room("n1"), room("n2", holds=False)], [replica("a", version="v", leaving=True)], ChosenNode("n1", fetch=False)),
        ([room("n1"), room("n2", usable=0)], [replica("a", version="v", memory_bytes=GIB)], ChosenNode("n1", fetch=False)),
        (
            [room("n1"), room("n2", holds=False, fetch_failed=True)],
            [replica("a", version="v", memory_bytes=GIB)],
            ChosenNode("n1", fetch=False),
        ),
        (
            [room("n1", cores=2), room("n2", cores=32, available=4 * GIB)],
            [replica("a", node="n2")],
            ChosenNode("n2", fetch=False),
        ),
        (
            [room("n1"), room("n2")],
            [replica("a", active=True, memory_bytes=0), replica("b", node="n2", active=False)],
            ChosenNode("n2", fetch=False),
        ),
        (
            [room("n1"), room("n2", holds=False)],
            [replica(name, memory_bytes=GIB) for name in "abc"],
            ChosenNode("n2", fetch=True),
        ),
    ],
    ids=[
        "to a node without a replica of the model, even if it must fetch",
        "one that leaves does not count",
        "two on a node if no other has room",
        "not to a node whose fetch failed",
        "work counts per core",
        "work counts more than free memory",
        "a crowded node loses to one that must fetch",
    ],
)
def test_replicas_are_spread_over_nodes(
    capacities: list[NodeCapacity], placed: list[PlacedReplica], chosen: ChosenNode
) -> None:
    assert place(VERSIONED, capacities, placed).outcome == chosen


def test_nodes_not_chosen_have_reasons() -> None:
    placement = place(VERSIONED, [room("n1"), room("n2", holds=False), room("n3", cores=8)], [replica("a", version="v")])
    assert placement.outcome == ChosenNode("n3", fetch=False)
    assert placement.refusals == {
        "n1": "already has 1 of the model's replicas",
        "n2": "would have to fetch the model's file",
    }


def test_a_file_is_not_fetched_to_a_full_disk() -> None:
    assert place(FETCHABLE, [room(holds=False, disk_free=GIB)], []).reason == (
        "n1 has 1.0 GiB of disk free, the model's file needs 2.0 GiB"
    )


def test_no_nodes_is_a_reason_to_wait() -> None:
    assert place(WANT, [], []).reason == "no node has reported yet"


def test_reserved_memory_counts_before_it_is_used() -> None:
    starting = replica("r1", settled=False, memory_bytes=5 * GIB)
    assert free_bytes(room(), [starting]) == 3 * GIB
    # The weights of a settled replica may be in the page cache, which the machine reports as available.
    assert free_bytes(room(), [replica("r1", memory_bytes=5 * GIB)]) == 3 * GIB
    # Memory of other processes is visible only in the machine's available memory.
    assert free_bytes(room(available=2 * GIB), []) == 2 * GIB
    assert free_bytes(room(available=None), [starting]) == 3 * GIB


@pytest.mark.parametrize(
    ("placed", "outcome"),
    [
        ([replica("a", unused_ms=1), replica("b", unused_ms=2)], Evict("n1", ("b",))),
        ([replica("a", unused_ms=1), replica("b", unused_ms=2, evictable=False)], Evict("n1", ("a",))),
        ([replica("a", evictable=False), replica("b", evictable=False)], Wait()),
        ([replica("a"), replica("b", leaving=True, evictable=False)], Wait()),
        (
            [replica(name, memory_bytes=2 * GIB, unused_ms=age) for name, age in (("a", 3), ("b", 1), ("c", 2))],
            Evict("n1", ("a",)),
        ),
        (
            [replica(name, memory_bytes=GIB, unused_ms=age) for name, age in zip("abcdefgh", range(8), strict=True)],
            Evict("n1", ("h", "g", "f", "e")),
        ),
    ],
    ids=[
        "the longest unused",
        "not the pinned or busy one",
        "no replica can be evicted",
        "one goes already",
        "one is enough",
        "several, and no more",
    ],
)
def test_idle_replicas_are_evicted_to_make_room(placed: list[PlacedReplica], outcome: Evict | Wait) -> None:
    assert place(WANT, [room()], placed).outcome == outcome


def test_room_is_made_by_evicting_the_fewest_replicas() -> None:
    crowd = [replica(name, memory_bytes=2 * GIB) for name in "abcd"]
    single = replica("z", node="n2", memory_bytes=5 * GIB)
    assert place(WANT, [room("n1"), room("n2")], [*crowd, single]).outcome == Evict("n2", ("z",))


@pytest.mark.parametrize(
    ("want", "capacities", "reason"),
    [
        (WANT, [], None),
        (WANT, [room()], None),
        (WANT, [room(ready=False)], None),
        (WANT, [room(holds=False)], "no node has its file"),
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
def test_what_never_fits_has_a_reason(want: PlacementRequest, capacities: list[NodeCapacity], reason: str | None) -> None:
    assert never(want, capacities) == reason


sizes = st.integers(0, 16)
names = st.sampled_from(["n1", "n2", "n3"])
rooms_of_all_kinds = st.lists(
    st.builds(
        NodeCapacity, names, st.booleans(), sizes, st.none() | sizes, sizes, st.booleans(), st.integers(0, 8), st.booleans()
    ),
    unique_by=lambda room: room.node,
)
placed_of_all_kinds = st.lists(
    st.builds(
        PlacedReplica,
        st.uuids().map(str),
        names,
        sizes,
        st.booleans(),
        leaving=st.booleans(),
        evictable=st.booleans(),
        unused_ms=sizes,
        active=st.booleans(),
        version=st.sampled_from(["", "v", "w"]),
    ),
    max_size=8,
)
wants = st.builds(PlacementRequest, st.integers(1, 16), sizes, st.booleans(), st.sampled_from(["", "v"]))


@given(wants, rooms_of_all_kinds, placed_of_all_kinds)
def test_memory_is_never_exceeded_and_every_refusal_has_a_reason(
    want: PlacementRequest, capacities: list[NodeCapacity], placed: list[PlacedReplica]
) -> None:
    placement = place(want, capacities, placed)
    by_name = {room.node: room for room in capacities}
    match placement.outcome:
        case ChosenNode(node, fetch):
            chosen = by_name[node]
            assert chosen.ready
            assert free_bytes(chosen, placed) >= want.memory_bytes
            assert chosen.holds or (fetch and want.fetchable and chosen.disk_free >= want.file_bytes)
            assert set(placement.refusals) == set(by_name) - {node}
        case Evict(node, victims):
            assert set(placement.refusals) == set(by_name)
            gone = [replica for replica in placed if replica.replica in victims]
            assert all(replica.evictable and not replica.leaving and replica.node == node for replica in gone)
            assert by_name[node].usable >= want.memory_bytes
            # Every victim is necessary.
            assert len(victims) >= 1
            assert gone
        case Wait():
            assert set(placement.refusals) == set(by_name)
    assert all(placement.refusals.values())


@given(st.integers(1, 8), st.lists(st.tuples(st.integers(1, 64), st.booleans()), min_size=1, max_size=5), placed_of_all_kinds)
def test_replicas_of_a_model_are_balanced_over_nodes_with_room(
    replicas: int, nodes: list[tuple[int, bool]], neighbours: list[PlacedReplica]
) -> None:
    capacities = [
        NodeCapacity(f"n{index}", True, 10_000, None, 10_000, holds=holds, cores=cores)
        for index, (cores, holds) in enumerate(nodes)
    ]
    placed = [replace(neighbour, version="other") for neighbour in neighbours]
    counts = dict.fromkeys((room.node for room in capacities), 0)
    for index in range(replicas):
        outcome = place(PlacementRequest(1, 1, True, version="v"), capacities, placed).outcome
        assert isinstance(outcome, ChosenNode)
        counts[outcome.node] += 1
        placed.append(PlacedReplica(str(index), outcome.node, 1, False, False, False, 0, version="v"))
    assert max(counts.values()) - min(counts.values()) <= 1


@given(wants, rooms_of_all_kinds, placed_of_all_kinds, st.data())
def test_the_order_of_nodes_and_replicas_does_not_matter(
    want: PlacementRequest, capacities: list[NodeCapacity], placed: list[PlacedReplica], data: st.DataObject
) -> None:
    shuffled = place(want, data.draw(st.permutations(capacities)), data.draw(st.permutations(placed)))
    assert shuffled == place(want, capacities, placed)
