"""Slots: which sequence owns which llama.cpp `seq_id`, and which tokens its cache holds. Only the scheduler changes them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, field
from itertools import count

from services.worker.engine.cells import Cells

#: The most tokens that an idle slot may lose when a sequence takes it over. If it would lose more, the prefix is shared.
_NEAR = 16

#: The shortest common prefix, in tokens, worth waiting for while another sequence computes it. A shorter one is computed twice.
_MIN_SHARED_TOKENS = 32


@dataclass
class Slot:
    """A llama.cpp sequence and its cached tokens: the first `num_held` of `tokens`.

    While a sequence runs here, `tokens` is that sequence's list. `request` is the request that the tokens belong to, and
    `domain` its isolation domain: no other domain reuses them. `used_at` is the logical time of the last use.
    """

    id: int
    tokens: list[int] = field(default_factory=list)
    num_held: int = 0
    busy: bool = False
    request: str = ""
    domain: str = ""
    used_at: int = 0


@dataclass(frozen=True)
class Cut:
    """Drop the slot's cached tokens from position `keep` on."""

    slot: int
    keep: int


@dataclass(frozen=True)
class Share:
    """Share the first `length` positions of `source` with `target`, which is empty."""

    source: int
    target: int
    length: int


CacheOperation = Cut | Share


@dataclass(frozen=True)
class Plan:
    """The slot for a new sequence, and the slot `source`, often the same, whose cache holds its first `keep` tokens."""

    target: Slot
    source: Slot
    keep: int


class SlotPool:
    """Assigns slots to sequences and reuses their cached prefixes.

    A finished slot keeps its tokens. A new sequence starts from the longest prefix that any slot holds: it takes over that
    slot, or shares the prefix with it. When cells run short, the least recently used idle slot loses its tokens first.

    `shareable` is False if two slots cannot share a prefix (each has a separate KV stream). `partial_reuse` is False for models
    whose memory cannot be truncated at an earlier token (recurrent ones): an idle slot is then reused only if all of its tokens
    are a prefix of the new sequence, and nothing is shared.
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
    def cached_requests(self) -> frozenset[str]:
        """The ids of the requests that have tokens in the cache, or are running."""
        return frozenset(slot.request for slot in self._slots if slot.busy or slot.num_held)

    @property
    def num_busy(self) -> int:
        return sum(slot.busy for slot in self._slots)

    @property
    def num_used(self) -> int:
        """Number of cells that hold a token."""
        return self._cells.num_used

    @property
    def num_running(self) -> int:
        """Number of cells of busy slots. A shared cell counts once per slot; the result is at most `num_used`."""
        return min(self.num_used, sum(slot.num_held for slot in self._slots if slot.busy))

    def take_operations(self) -> tuple[CacheOperation, ...]:
        """Returns and clears the pending operations. Apply them to the cache, first to last, before the next decode."""
        operations, self._operations = tuple(self._operations), []
        return operations

    def is_worth_waiting(self, tokens: TokenIds[int], *, domain: str = "") -> bool:
        """Whether a running sequence is computing a longer prefix of `tokens` than any slot holds now."""
        if not self._shareable:
            return False
        common = {slot.id: _common(slot, tokens, domain) for slot in self._slots}
        held = max(min(common[slot.id], slot.num_held) for slot in self._slots)
        coming = max((common[slot.id] for slot in self._slots if slot.busy), default=0)
        return coming >= _MIN_SHARED_TOKENS and min(coming, len(tokens) - 1) > held

    def plan(self, tokens: TokenIds[int], *, domain: str = "") -> Plan:
        """Chooses a slot; one must be idle. The last token is never reused: the sequence needs its logits."""
        reusable = {slot.id: self._reusable(slot, tokens, domain) for slot in self._slots}
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
        """Whether `num_cells` are free, or would be after dropping all idle tokens except those that `plan` keeps."""
        if self._cells.num_free >= num_cells:
            return True
        busy = [slot.id for slot in self._slots if slot.busy]
        return self._cells.num_free_beside(busy, prefix=(plan.source.id, plan.keep)) >= num_cells

    def acquire(self, plan: Plan, tokens: list[int], *, request: str, domain: str = "") -> None:
        """Starts a sequence in the plan's slot. `tokens` is the sequence's list; `domain` must be the one given to `plan`."""
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
        target.domain = domain
        target.tokens = tokens

    def release(self, slot_id: int) -> None:
        slot = self._slots[slot_id]
        slot.busy = False
        slot.tokens = slot.tokens[: slot.num_held]
        slot.used_at = next(self._clock)

    def grow(self, slot_id: int, count: int) -> None:
        """Records `count` more computed tokens in the slot. Call `make_room` for their cells first."""
        self._cells.grow(slot_id, count)
        self._slots[slot_id].num_held += count

    def cut(self, slot_id: int, keep: int) -> None:
        slot = self._slots[slot_id]
        if slot.num_held > keep:
            self._operations.append(Cut(slot_id, keep))
            self._cells.cut(slot_id, keep)
            slot.num_held = keep

    def make_room(self, num_cells: int) -> bool:
        """Empties idle slots, least recently used first, until `num_cells` are free. Returns False if that is not enough."""
        idle = sorted((slot for slot in self._slots if not slot.busy and slot.num_held), key=lambda slot: slot.used_at)
        for slot in idle:
            if self._cells.num_free >= num_cells:
                break
            self.cut(slot.id, 0)
        return self._cells.num_free >= num_cells

    def forget_idle(self) -> bool:
        """Empties all idle slots. Returns False if they were empty already."""
        holding = [slot for slot in self._slots if not slot.busy and slot.num_held]
        for slot in holding:
            self.cut(slot.id, 0)
        return bool(holding)

    def _reusable(self, slot: Slot, tokens: TokenIds[int], domain: str) -> int:
        if slot.busy and not self._shareable:
            return 0
        common = min(_common(slot, tokens, domain), slot.num_held, len(tokens) - 1)
        if self._partial_reuse or common == slot.num_held:
            return common
        return 0

    def _worth(self, slot: Slot, reusable: int) -> tuple[int, bool, int]:
        """Sort key: tokens reused minus tokens lost. If nothing is gained, an empty slot, then the least recently used."""
        lost = slot.num_held - reusable
        return max(0, reusable - lost), not slot.num_held, -slot.used_at


def _common(slot: Slot, tokens: TokenIds[int], domain: str) -> int:
    return common_prefix(slot.tokens, tokens) if slot.domain == domain else 0


def common_prefix(a: TokenIds[int], b: TokenIds[int]) -> int:
    """Length of the common prefix. Compares slices, which Python does in C, instead of looping over tokens."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return bisect_left(range(1, length + 1), True, key=lambda end: a[:end] != b[:end])
