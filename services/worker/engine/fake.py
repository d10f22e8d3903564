"""FakeRunner: a model with scripted tokens and a cost model instead of weights.

It ships with the product: the control plane's tests and the gateway's benchmarks run on it. Its vocabulary is the 256 bytes
and one end token, its KV cache is checked as strictly as llama.cpp's, and what it says follows from the text before it and
nothing else, so a resumed text goes on as the undisturbed one would.
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

from services.worker.engine.runner import DecodeAborted, NoRoom
from services.worker.engine.scheduler import Span

END = 256
VOCABULARY = 257

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)

#: Of `recite`: opens its reasoning where it is asked for.
RECITING_TEMPLATE = CHAT_TEMPLATE + "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}{# </think> #}"

Script = Callable[[TokenIds[int]], int]


def babble(tokens: TokenIds[int]) -> int:
    """Endless lower-case words, determined by the last 16 tokens."""
    return b"abcdefghijklmnopqrstuvwxyz      "[zlib.crc32(bytes(token & 0xFF for token in tokens[-16:])) % 32]


def recite(tokens: TokenIds[int]) -> int:
    """Says what stands between « and » in the chat, then ends; without them it babbles."""
    chat, _, said = bytes(token & 0xFF for token in tokens).rpartition(b"<assistant>")
    quoted = chat.rpartition("«".encode())[2].partition("»".encode())
    if not quoted[1]:
        return babble(tokens)
    position = len(said.removeprefix(b"<think>"))
    return quoted[0][position] if position < len(quoted[0]) else END


@dataclass(frozen=True)
class CostModel:
    """Seconds that a step takes: a fixed part, and one part for each token of its batch."""

    step_s: float = 0.0
    token_s: float = 0.0

    def of(self, num_tokens: int) -> float:
        return self.step_s + self.token_s * num_tokens

    def pay(self, num_tokens: int) -> None:
        time.sleep(self.of(num_tokens))


@dataclass(frozen=True, eq=False)
class _Cell:
    """One cell of the cache; a prefix that slots share is the same cells."""

    token: int


class FakeRunner:
    """Implements ModelRunner. `script` gives the likeliest next token after all tokens so far; every other byte is 8 logits
    below it, so that sampling at a temperature varies. `cells` bounds the KV cache over all slots."""

    num_vocab = VOCABULARY
    partial_reuse = True
    shareable_prefixes = True
    end_tokens = frozenset({END})
    tool_template: str | None = None
    bos_text = ""
    eos_text = ""
    fim_prefix: int | None = None
    fim_suffix: int | None = None
    fim_middle: int | None = None

    def __init__(
        self,
        *,
        num_slots: int = 8,
        max_running: int | None = None,
        context_tokens: int = 4096,
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
