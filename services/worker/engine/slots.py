"""Slots: who owns which llama.cpp `seq_id`, and which tokens each one still holds. Only the scheduler changes them."""

from __future__ import annotations

from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, field
from itertools import count


@dataclass
class Slot:
    """`tokens` are those whose KV cells are in the cache while no sequence runs in the slot. `used_at` counts releases."""

    id: int
    tokens: list[int] = field(default_factory=list)
    used_at: int = 0


@dataclass(frozen=True)
class Acquired:
    """A slot for a sequence, whose cache is to be cut back to its first `keep` tokens."""

    slot: int
    keep: int


class SlotPool:
    """A finished slot keeps its tokens, and a new sequence takes the one that spares it the most work.

    `partial_reuse` is False for models whose memory cannot be cut back to an earlier token (recurrent ones): there a slot is
    reused only where all of its tokens begin the new sequence.
    """

    def __init__(self, num_slots: int, *, partial_reuse: bool = True) -> None:
        assert num_slots > 0
        self._idle = {slot.id: slot for slot in map(Slot, range(num_slots))}
        self._busy: dict[int, Slot] = {}
        self._partial_reuse = partial_reuse
        self._clock = count(1)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def acquire(self, tokens: TokenIds[int]) -> Acquired:
        """The caller has checked `num_idle`. The last token is never kept: its logits are what the sequence needs."""
        assert self._idle
        reusable = {slot.id: self._reusable(slot, tokens) for slot in self._idle.values()}
        slot = max(self._idle.values(), key=lambda slot: self._worth(slot, reusable[slot.id]))
        self._busy[slot.id] = self._idle.pop(slot.id)
        slot.tokens = []
        return Acquired(slot.id, reusable[slot.id])

    def release(self, slot_id: int, tokens: TokenIds[int]) -> None:
        """`tokens` are what the slot's cache holds now."""
        slot = self._busy.pop(slot_id)
        slot.tokens = list(tokens)
        slot.used_at = next(self._clock)
        self._idle[slot_id] = slot

    def forget_idle(self) -> list[int]:
        """Gives up what the idle slots hold; returns the slots whose cache is to be cleared."""
        holding = [slot for slot in self._idle.values() if slot.tokens]
        for slot in holding:
            slot.tokens = []
        return [slot.id for slot in holding]

    def _reusable(self, slot: Slot, tokens: TokenIds[int]) -> int:
        common = min(common_prefix(slot.tokens, tokens), len(tokens) - 1)
        if self._partial_reuse or common == len(slot.tokens):
            return common
        return 0

    def _worth(self, slot: Slot, reusable: int) -> tuple[int, bool, int]:
        """Most tokens spared less tokens lost; where nothing is gained, an empty slot, then the least recently used."""
        lost = len(slot.tokens) - reusable
        return max(0, reusable - lost), not slot.tokens, -slot.used_at


def common_prefix(a: TokenIds[int], b: TokenIds[int]) -> int:
    """How many leading tokens are the same."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(i for i in range(length) if a[i] != b[i])
