"""ModelRunner: the engine's interface to a model, and the errors it raises.

Two implementations: `llama.LlamaRunner`, and `fake.FakeRunner` with scripted tokens. Use a runner's cache and `decode` only
from the engine thread. Its vocabulary (`tokenize`, `token_bytes`) is read-only and can be used from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

#: Called with the fraction of the model that is loaded (0 to 1), from the loading thread. Return False to cancel the load.
OnProgress = Callable[[float], bool]


class EngineError(Exception):
    """
    EngineError
    ├── NoRoom          the batch does not fit the KV cache; the cache is unchanged
    ├── DecodeAborted   the batch was interrupted; the cache is unchanged
    ├── EngineDead      the context is unusable; the process must be replaced
    ├── ModelUnusable   the file cannot be loaded; retrying does not help
    └── LoadCancelled   the caller cancelled the load
    """


class NoRoom(EngineError):
    """`llama_decode` found no KV cells for the batch."""


class DecodeAborted(EngineError):
    """`interrupt` was called during this decode, or since the previous one."""


class EngineDead(EngineError):
    """`llama_decode` failed and left the context in an undefined state."""


class ModelUnusable(EngineError):
    """Not a GGUF, truncated, an unknown architecture, or too large for the memory. The message gives the reason."""


class LoadCancelled(EngineError):
    """`on_progress` returned False, so the load stopped."""


@dataclass(frozen=True)
class Span:
    """What one slot computes in a batch: `tokens`, at positions from `start`. `samples`: the last token's logits are needed."""

    slot: int
    start: int
    tokens: TokenIds[int]
    samples: bool


class ModelRunner(Protocol):
    """A loaded model that generates text.

    - Token ids are below `num_vocab`; `end_tokens` end a text.
    - At most `max_running` sequences are computed at a time. Slots beyond that keep prefixes of earlier sequences.
    - `context_tokens` is the limit per slot; `num_cells` counts the KV cells of all slots together, at least one full context.
    - `partial_reuse` and `shareable_prefixes` are those of SlotPool (its `shareable`).
    - `tool_template` is the model's separate chat template for chats with tools, if it has one.
    - `control_texts` are the texts that `tokenize` reads as control tokens if `special` is set.
    - The `fim_*` tokens mark the prefix, the suffix and the gap in a fill-in-the-middle prompt; None if the model has none.
    """

    num_vocab: int
    num_slots: int
    max_running: int
    context_tokens: int
    num_cells: int
    partial_reuse: bool
    shareable_prefixes: bool
    end_tokens: frozenset[int]
    chat_template: str | None
    tool_template: str | None
    bos_text: str
    eos_text: str
    control_texts: tuple[str, ...]
    fim_prefix: int | None
    fim_suffix: int | None
    fim_middle: int | None

    @property
    def threads(self) -> int:
        """Number of threads that will compute the next batch. Safe from any thread."""

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Returns token ids. `special` reads control tokens written in the text as control tokens; otherwise they are plain
        text. Prepends the BOS token if the model expects one and the text does not start with it."""

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that the token adds to the text; they may end mid-character. Empty for control tokens."""

    def token_text(self, token: int) -> bytes:
        """The token's written form, also for control tokens."""

    def cut(self, slot: int, keep: int) -> None:
        """Drops the slot's cached tokens from position `keep` on."""

    def share(self, source: int, target: int, length: int) -> None:
        """Shares the first `length` cached tokens of `source` with `target`, which must be empty. Copies nothing."""

    def interrupt(self) -> None:
        """Makes the current decode, or else the next one, raise DecodeAborted. Safe from any thread. Does nothing on models or
        devices that cannot be interrupted."""

    def decode(self, spans: TokenIds[Span]) -> NDArray[np.float32]:
        """Computes the spans. Returns one row of logits for each span that samples, in the same order, valid until the next
        call. Raises NoRoom, DecodeAborted or EngineDead."""

    def close(self) -> None:
        """Frees the model."""
