"""ModelRunner: what the engine asks of a model, and the ways in which a model can fail it.

Two implementations: `llama.LlamaRunner`, and `fake.FakeRunner` with scripted tokens. A runner's cache and `decode` belong to
the engine thread alone; its vocabulary (`tokenize`, `token_bytes`) only reads and may be used from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as TokenIds
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.worker.engine.scheduler import Span

#: Told how much of a model is loaded (0 to 1), from the thread that loads it; False ends the loading.
OnProgress = Callable[[float], bool]


class EngineError(Exception):
    """
    EngineError
    ├── NoRoom          the batch does not fit the KV cache; the cache is as it was before
    ├── DecodeAborted   the batch was interrupted; the cache is as it was before
    ├── EngineDead      the context is unusable; the process must be replaced
    ├── ModelUnusable   the file cannot be loaded; trying again gives the same
    └── LoadCancelled   whoever loads the model wants it no more
    """


class NoRoom(EngineError):
    """`llama_decode` found no KV cells for the batch."""


class DecodeAborted(EngineError):
    """`interrupt` was called while the batch was computed, or since the batch before."""


class EngineDead(EngineError):
    """`llama_decode` failed in a way that leaves the context undefined."""


class ModelUnusable(EngineError):
    """Not a GGUF, cut short, an unknown architecture, or more memory than there is. The message says which."""


class LoadCancelled(EngineError):
    """The model was not loaded to its end, because nobody wants it any more."""


class ModelRunner(Protocol):
    """Token ids are below `num_vocab`. At most `max_running` sequences are computed at a time; there may be more slots than that, which
    keep prefixes of earlier ones. `context_tokens` per slot, `num_cells` for all slots together, at least one context;
    `partial_reuse` and `shareable_prefixes` as in SlotPool; `end_tokens` are the tokens that end a text. The `fim_*` tokens
    stand before the prefix, the suffix and the gap of a text that is to be filled in; None where the model has none.
    `tool_template`: for chats with tools, where the model brings one of its own for them."""

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
    fim_prefix: int | None
    fim_suffix: int | None
    fim_middle: int | None

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids. `special` reads control tokens written in the text as such; without it they are plain text. A model that
        wants a BOS token gets one, unless the text begins with it."""

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to the text: UTF-8 that may end in the middle of a character; empty for control tokens."""

    def token_text(self, token: int) -> bytes:
        """The token as it is written: control tokens too, which add nothing to the text."""

    def cut(self, slot: int, keep: int) -> None:
        """Drops the slot's cached tokens from position `keep` on."""

    def share(self, source: int, target: int, length: int) -> None:
        """Marks the first `length` cached tokens of one slot as those of another, which holds nothing."""

    def interrupt(self) -> None:
        """Ends the decode that runs, or the next one if none does, with DecodeAborted. From any thread. May do nothing where the
        device cannot."""

    def decode(self, spans: TokenIds[Span]) -> NDArray[np.float32]:
        """Computes the spans; returns one row of logits for each span that samples, in their order. The rows are valid until
        the next call. Raises NoRoom, DecodeAborted or EngineDead."""

    def close(self) -> None:
        """Frees the model."""
