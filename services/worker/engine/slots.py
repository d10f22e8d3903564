"""Slots: who owns which llama.cpp `seq_id`, and which tokens each one's cache holds. Only the scheduler changes them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, field
from itertools import count

from services.worker.engine.cells import Cells

#: So much of an idle slot may be lost for taking it over in place, where the prefix could be marked for another slot instead.
_NEAR = 16

#: A common prefix of so many tokens is waited for while another sequence computes it; less is computed twice.
_WORTH_WAITING = 32


@dataclass
class Slot:
    """The first `num_held` of `tokens` are in the cache. While a sequence runs here, `tokens` is that sequence's own list.
    `request` is whose tokens they are. `used_at` counts uses."""

    id: int
    tokens: list[int] = field(default_factory=list)
    num_held: int = 0
    busy: bool = False
    request: str = ""
    used_at: int = 0


@dataclass(frozen=True)
class Cut:
    """Drop what the slot's cache holds from position `keep` on."""

    slot: int
    keep: int


@dataclass(frozen=True)
class Share:
    """Mark the first `length` positions of `source` as those of `target` too, which holds nothing."""

    source: int
    target: int
    length: int


CacheOperation = Cut | Share


@dataclass(frozen=True)
class Plan:
    """A slot for a sequence, of which `keep` tokens are in the cache of `source`; often the same slot."""

    target: Slot
    source: Slot
    keep: int


class SlotPool:
    """A finished slot keeps its tokens. A new sequence starts from the longest prefix that any slot holds: it takes over an idle
    slot, or has the prefix marked for another one. Where something has to go, it is the least recently used.

    `shareable` is False where a prefix cannot be marked for a second slot (one KV stream for each). `partial_reuse` is False for
    models whose memory cannot be cut back to an earlier token (recurrent ones): there an idle slot is reused only where all of
    its tokens begin the new sequence, and nothing is shared.
    """

    def __init__(self, num_slots: int, num_cells: int, *, partial_reuse: bool = True, shareable: bool = True) -> None:
        assert num_slots > 0
        self._slots = [Slot(id) for id in range(num_slots)]
        self._cells = Cells(num_cells, num_slots)
        self._partial_reuse = partial_reuse
        self._shareable = shareable and partial_reuse
        self._clock = count(1)
        self._operations: list[CacheOperation] = []

    @property
    def has_idle(self) -> bool:
        return any(not slot.busy for slot in self._slots)

    @property
    def holders(self) -> frozenset[str]:
        """The requests of which the cache holds something, or is about to."""
        return frozenset(slot.request for slot in self._slots if slot.busy or slot.num_held)

    @property
    def num_busy(self) -> int:
        return sum(slot.busy for slot in self._slots)

    @property
    def num_used(self) -> int:
        """Cells."""
        return self._cells.num_used

    @property
    def num_running(self) -> int:
        """Cells of busy slots. One that two of them share counts for both, as far as there are so many."""
        return min(self.num_used, sum(slot.num_held for slot in self._slots if slot.busy))

    def take_operations(self) -> tuple[CacheOperation, ...]:
        """What is to be done to the cache before the next decode, in this order."""
        operations, self._operations = tuple(self._operations), []
        return operations

    def is_worth_waiting(self, tokens: TokenIds[int]) -> bool:
        """Whether a running sequence is about to have computed a longer prefix of `tokens` than any slot holds now."""
        if not self._shareable:
            return False
        common = {slot.id: common_prefix(slot.tokens, tokens) for slot in self._slots}
        held = max(min(common[slot.id], slot.num_held) for slot in self._slots)
        coming = max((common[slot.id] for slot in self._slots if slot.busy), default=0)
        return coming >= _WORTH_WAITING and min(coming, len(tokens) - 1) > held

    def plan(self, tokens: TokenIds[int]) -> Plan:
        """Some slot is idle. The last token is never kept: its logits are what the sequence needs."""
        reusable = {slot.id: self._reusable(slot, tokens) for slot in self._slots}
        idle = [slot for slot in self._slots if not slot.busy]
        if not self._shareable:
            slot = max(idle, key=lambda slot: self._worth(slot, reusable[slot.id]))
            return Plan(slot, slot, reusable[slot.id])
        source = max(self._slots, key=lambda slot: (reusable[slot.id], not slot.busy, slot.used_at))
        keep = reusable[source.id]
        if keep and not source.busy and source.num_held - keep <= _NEAR:
            return Plan(source, source, keep)
        if not keep:
            source = min(idle, key=lambda slot: (slot.num_held > 0, slot.used_at))
            return Plan(source, source, 0)
        others = [slot for slot in idle if slot is not source]
        target = min(others, key=lambda slot: (slot.num_held > 0, slot.used_at), default=source)
        return Plan(target, source, keep)

    def has_room(self, plan: Plan, num_cells: int) -> bool:
        """Whether so many cells are free or would be, once everything idle were given up but what `plan` keeps."""
        if self._cells.num_free >= num_cells:
            return True
        busy = [slot.id for slot in self._slots if slot.busy]
        return self._cells.num_free_beside(busy, prefix=(plan.source.id, plan.keep)) >= num_cells

    def acquire(self, plan: Plan, tokens: list[int], *, request: str) -> None:
        """`tokens` is the list of the sequence that runs here from now on, for `request`."""
        source, target = plan.source, plan.target
        if source is not target:
            self.cut(target.id, 0)
            self._operations.append(Share(source.id, target.id, plan.keep))
            self._cells.share(source.id, target.id, plan.keep)
            target.num_held = plan.keep
            source.used_at = next(self._clock)
        self.cut(target.id, plan.keep)
        target.busy = True
        target.request = request
        target.tokens = tokens

    def release(self, slot_id: int) -> None:
        slot = self._slots[slot_id]
        slot.busy = False
        slot.tokens = slot.tokens[: slot.num_held]
        slot.used_at = next(self._clock)

    def grow(self, slot_id: int, count: int) -> None:
        """So many more tokens of the slot have been computed; `make_room` has been asked for their cells."""
        self._cells.grow(slot_id, count)
        self._slots[slot_id].num_held += count

    def cut(self, slot_id: int, keep: int) -> None:
        slot = self._slots[slot_id]
        if slot.num_held > keep:
            self._operations.append(Cut(slot_id, keep))
            self._cells.cut(slot_id, keep)
            slot.num_held = keep

    def make_room(self, num_cells: int) -> bool:
        """Gives up idle slots, the least recently used first, until so many cells are free. False where that is not enough."""
        idle = sorted((slot for slot in self._slots if not slot.busy and slot.num_held), key=lambda slot: slot.used_at)
        for slot in idle:
            if self._cells.num_free >= num_cells:
                break
            self.cut(slot.id, 0)
        return self._cells.num_free >= num_cells

    def forget_idle(self) -> bool:
        """Gives up all that idle slots hold. False where they hold nothing."""
        holding = [slot for slot in self._slots if not slot.busy and slot.num_held]
        for slot in holding:
            self.cut(slot.id, 0)
        return bool(holding)

    def _reusable(self, slot: Slot, tokens: TokenIds[int]) -> int:
        if slot.busy and not self._shareable:
            return 0
        common = min(common_prefix(slot.tokens, tokens), slot.num_held, len(tokens) - 1)
        if self._partial_reuse or common == slot.num_held:
            return common
        return 0

    def _worth(self, slot: Slot, reusable: int) -> tuple[int, bool, int]:
        """Most tokens spared less tokens lost; where nothing is gained, an empty slot, then the least recently used."""
        lost = slot.num_held - reusable
        return max(0, reusable - lost), not slot.num_held, -slot.used_at


def common_prefix(a: TokenIds[int], b: TokenIds[int]) -> int:
    """How many leading tokens are the same. Slices are compared in C, a loop over the tokens would not be."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return bisect_left(range(1, length + 1), True, key=lambda end: a[:end] != b[:end])
