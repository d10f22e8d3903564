"""The pure core: whatever happens in whatever order, each byte is fetched once, and what is recorded is there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.node.downloads.ranges import Range, Ranges, gaps, total, union
from services.node.downloads.transfer import MAX_PART_BYTES, MIB, Transfer

SIZES = st.integers(0, 2000)


@st.composite
def range_sets(draw: st.DrawFn, size: int = 2000) -> Ranges:
    pairs = draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size))))
    return union(Range(min(pair), max(pair)) for pair in pairs)


def members(ranges: Ranges) -> set[int]:
    return {byte for one in ranges for byte in range(one.start, one.stop)}


@given(range_sets(), range_sets())
def test_union_has_the_bytes_of_both_and_no_more(one: Ranges, other: Ranges) -> None:
    both = union([*one, *other])
    assert members(both) == members(one) | members(other)
    assert total(both) == len(members(both))
    assert all(first.stop < second.start for first, second in zip(both, both[1:], strict=False))


@given(range_sets())
def test_gaps_are_the_rest(ranges: Ranges) -> None:
    rest = gaps(ranges, 2000)
    assert members(rest) == set(range(2000)) - members(ranges)
    assert gaps(rest, 2000) == ranges


@given(st.integers(1, 2**43), st.booleans())
def test_parts_are_neither_tiny_nor_huge(size: int, whole: bool) -> None:
    part = Transfer(size, whole=whole).take()
    assert part
    if whole:
        assert part == Range(0, size)
    else:
        assert min(size, 4 * MIB) <= part.size <= MAX_PART_BYTES


@given(st.integers(50 * MIB, 2**43))
def test_a_crash_loses_less_than_a_hundredth(size: int) -> None:
    assert Transfer(size).save_bytes <= size / 100


class TransferMachine(RuleBasedStateMachine):
    """Connections take parts, write some of them and break off; the agent dies and goes on with what was saved."""

    size = 40 * MIB

    def __init__(self) -> None:
        super().__init__()
        self.transfer = Transfer(self.size)
        self.fetching: dict[Range, int] = {}
        self.fetched: list[Range] = []
        self.saved: Ranges = ()

    @rule()
    def take(self) -> None:
        part = self.transfer.take()
        busy = union([*self.transfer.done, *self.fetching])
        if part is None:
            assert total(busy) == self.size
            return
        assert total(union([*busy, part])) == total(busy) + part.size, "nobody has it or fetches it"
        self.fetching[part] = part.start

    @precondition(lambda self: self.fetching)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        part = data.draw(st.sampled_from(sorted(self.fetching)))
        at = self.fetching[part]
        count = data.draw(st.integers(0, part.stop - at))
        self.transfer.write(at, count)
        self.fetching[part] += count
        self.fetched.append(Range(at, at + count))

    @precondition(lambda self: self.fetching)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        part = data.draw(st.sampled_from(sorted(self.fetching)))
        del self.fetching[part]
        self.transfer.release(part)

    @rule()
    def save(self) -> None:
        self.saved = self.transfer.done

    @rule()
    def die(self) -> None:
        self.transfer = Transfer(self.size, self.saved)
        self.fetching.clear()
        self.fetched = list(self.saved)

    @invariant()
    def every_byte_is_fetched_once(self) -> None:
        assert total(self.fetched) == self.transfer.completed == self.size - self.transfer.missing
        assert union(self.fetched) == self.transfer.done


TestTransfer = TransferMachine.TestCase


def test_a_whole_file_begins_again() -> None:
    transfer = Transfer(100, (Range(0, 50),), whole=True)
    part = transfer.take()
    assert part == Range(0, 100)
    assert transfer.take() is None
    transfer.write(0, 99)
    transfer.release(part)
    assert transfer.take() == part
    transfer.write(0, 100)
    transfer.release(part)
    assert (transfer.take(), transfer.missing) == (None, 0)
