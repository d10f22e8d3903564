"""FakeRunner: a model with scripted tokens and a cost model instead of weights.

It ships with the product: the control plane's tests and the gateway's benchmarks run on it. Its vocabulary is the 256 byte
values and one end token. Its logits depend only on the text so far, so a resumed answer continues as if uninterrupted.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.weights.memory import DEFAULT_SLOT_CELLS
from services.worker.engine.runner import DecodeAborted, NoRoom, Span

END = 256
VOCABULARY = 257

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)

#: The template for `recite`. Opens a reasoning block if `enable_thinking` is set.
RECITING_TEMPLATE = CHAT_TEMPLATE + "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}{# </think> #}"

Script = Callable[[TokenIds[int]], int]


def babble(tokens: TokenIds[int]) -> int:
    """Produces lower-case words without end, determined by the last 16 tokens."""
    return b"abcdefghijklmnopqrstuvwxyz      "[zlib.crc32(bytes(token & 0xFF for token in tokens[-16:])) % 32]


def recite(tokens: TokenIds[int]) -> int:
    """Repeats the text between the last « and » of the chat, then ends. Without them it babbles."""
    chat, _, said = bytes(token & 0xFF for token in tokens).rpartition(b"<assistant>")
    quoted = chat.rpartition("«".encode())[2].partition("»".encode())
    if not quoted[1]:
        return babble(tokens)
    position = len(said.removeprefix(b"<think>"))
    return quoted[0][position] if position < len(quoted[0]) else END


@dataclass(frozen=True)
class CostModel:
    """Duration of a step in seconds: a fixed part plus a part for each token in the batch."""

    step_s: float = 0.0
    token_s: float = 0.0

    def of(self, num_tokens: int) -> float:
        return self.step_s + self.token_s * num_tokens

    def pay(self, num_tokens: int) -> None:
        time.sleep(self.of(num_tokens))


@dataclass(frozen=True, eq=False)
class _Cell:
    """One cell of the cache. Slots that share a prefix hold the same objects."""

    token: int


class FakeRunner:
    """Implements ModelRunner.

    `script` returns the likeliest next token after all tokens so far. Every other byte has a logit lower by 8, so that
    sampling at a temperature varies. `cells` is the size of the KV cache over all slots.
    """

    num_vocab = VOCABULARY
    partial_reuse = True
    shareable_prefixes = True
    end_tokens = frozenset({END})
    tool_template: str | None = None
    bos_text = ""
    eos_text = ""
    control_texts: tuple[str, ...] = ()
    fim_prefix: int | None = None
    fim_suffix: int | None = None
    fim_middle: int | None = None
    threads = 1

    def __init__(
        self,
        *,
        num_slots: int = 8,
        max_running: int | None = None,
        context_tokens: int = DEFAULT_SLOT_CELLS,
        script: Script = babble,
        cost: CostModel = CostModel(),
        cells: int | None = None,
        chat_template: str = CHAT_TEMPLATE,
    ) -> None:
        self.chat_template: str | None = chat_template
        self.num_slots = num_slots
        self.max_running = num_slots if max_running is None else max_running
        self.context_tokens = context_tokens
        self._script = script
        self._cost = cost
        self.num_cells = self.max_running * context_tokens if cells is None else cells
        assert self.num_cells >= context_tokens
        self._cache: list[list[_Cell]] = [[] for _ in range(num_slots)]
        self._interrupted = threading.Event()

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < END else b""

    def token_text(self, token: int) -> bytes:
        return bytes([token]) if token < END else b"<end>"

    def cut(self, slot: int, keep: int) -> None:
        assert keep <= len(self._cache[slot])
        del self._cache[slot][keep:]

    def share(self, source: int, target: int, length: int) -> None:
        assert not self._cache[target], "a prefix is marked for a slot that holds nothing"
        assert length <= len(self._cache[source])
        self._cache[target] = self._cache[source][:length]

    def interrupt(self) -> None:
        self._interrupted.set()

    def decode(self, spans: TokenIds[Span]) -> NDArray[np.float32]:
        num_tokens = sum(len(span.tokens) for span in spans)
        used = {id(cell) for cells in self._cache for cell in cells}
        if len(used) + num_tokens > self.num_cells:
            raise NoRoom
        if self._interrupted.wait(self._cost.of(num_tokens)):
            self._interrupted.clear()
            raise DecodeAborted
        rows = []
        for span in spans:
            cached = self._cache[span.slot]
            assert span.start == len(cached), "a span must continue what its slot holds"
            assert len(cached) + len(span.tokens) <= self.context_tokens
            cached.extend(map(_Cell, span.tokens))
            if span.samples:
                rows.append(self._logits([cell.token for cell in cached]))
        return np.array(rows, dtype=np.float32).reshape(len(rows), VOCABULARY)

    def _logits(self, tokens: TokenIds[int]) -> NDArray[np.float32]:
        logits = np.zeros(VOCABULARY, dtype=np.float32)
        logits[END] = -np.inf
        logits[self._script(tokens)] = 8.0
        return logits

    def close(self) -> None:
        self._cache = []
