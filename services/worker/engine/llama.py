"""LlamaRunner: a GGUF model on llama.cpp, through llama_cpp's low-level C API.

The high-level classes of llama_cpp serve one sequence at a time, so this builds the batches itself. ctypes releases the GIL
during `llama_decode` and while a model loads, so the other threads keep running.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence as TokenIds
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from services.protocol.engine import EngineSettings
from services.weights.memory import slot_context_tokens
from services.worker.engine.llama_batch import LlamaBatch
from services.worker.engine.llama_compute import LlamaCompute
from services.worker.engine.llama_model import (
    LogLines,
    can_be_cut,
    control_texts,
    load_model,
    new_context,
    num_slots,
    start_llama,
    trained_context,
)
from services.worker.engine.runner import DecodeAborted, EngineDead, NoRoom, OnProgress, Span

log = logging.getLogger(__name__)

#: `llama_decode` returns 1 if it finds no KV cells for the batch and 2 if the abort callback stopped it; in both cases the
#: cache is unchanged. 0 is success. After anything else, the state of the context is undefined.
_NO_ROOM = 1
_ABORTED = 2


class LlamaRunner:
    """Implements ModelRunner for a GGUF file. Raises ModelUnusable if the file cannot be loaded, LoadCancelled if `on_progress`
    returns False."""

    def __init__(self, path: Path, settings: EngineSettings, *, on_progress: OnProgress = lambda _: True) -> None:
        self._messages = LogLines()
        start_llama()
        self._model = load_model(path, settings, self._messages, on_progress)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._context = new_context(self._model, settings, self._messages)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._compute = LlamaCompute(self._context, settings)
        self._batch = LlamaBatch(settings.batch_tokens)
        self._abort = _AbortFlag()
        self.num_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.num_slots = num_slots(self._model, settings)
        self.max_running = settings.slots
        self.context_tokens = slot_context_tokens(trained_context(self._model), settings)
        self.partial_reuse = can_be_cut(self._model)
        self.shareable_prefixes = settings.kv_unified
        self.num_cells = llama_cpp.llama_n_ctx(self._context)
        if self.partial_reuse:  # a recurrent state cannot undo a half-computed batch
            self._abort.attach(self._context)
        self.end_tokens = frozenset(
            token for token in range(self.num_vocab) if llama_cpp.llama_vocab_is_eog(self._vocab, token)
        )
        self.chat_template = self._template(None)
        self.tool_template = self._template(b"tool_use")
        self._bos = llama_cpp.llama_vocab_bos(self._vocab)
        self._add_bos = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self.bos_text = self._piece(self._bos, special=True).decode(errors="replace")
        self.eos_text = self._piece(llama_cpp.llama_vocab_eos(self._vocab), special=True).decode(errors="replace")
        self.control_texts = control_texts(self._vocab)
        self.fim_prefix, self.fim_suffix, self.fim_middle = self._fill_tokens()
        self._pieces: dict[int, bytes] = {}

    @property
    def threads(self) -> int:
        return self._compute.threads

    def _template(self, name: bytes | None) -> str | None:
        template = llama_cpp.llama_model_chat_template(self._model, name)
        return template.decode() if template else None

    def _fill_tokens(self) -> tuple[int | None, ...]:
        tokens = (
            llama_cpp.llama_vocab_fim_pre(self._vocab),
            llama_cpp.llama_vocab_fim_suf(self._vocab),
            llama_cpp.llama_vocab_fim_mid(self._vocab),
        )
        return tuple(None if token < 0 else token for token in tokens)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        data = text.encode()
        found, ids = self._tokenize(data, special, room=len(data) + 8)
        if found < 0:  # with byte fallback, a space can become three tokens
            found, ids = self._tokenize(data, special, room=-found)
        if self._add_bos and ids[:1] != [self._bos]:
            return [self._bos, *ids]
        return ids

    def _tokenize(self, data: bytes, special: bool, *, room: int) -> tuple[int, list[int]]:
        tokens = (llama_cpp.llama_token * room)()
        found = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, False, special)
        return found, tokens[: max(found, 0)]

    def token_bytes(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token, special=False)
        return piece

    def token_text(self, token: int) -> bytes:
        return self._piece(token, special=True)

    def _piece(self, token: int, *, special: bool) -> bytes:
        if token < 0:
            return b""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            room = -length

    def cut(self, slot: int, keep: int) -> None:
        if not llama_cpp.llama_memory_seq_rm(self._memory, slot, keep, -1):
            raise EngineDead(f"the model's memory cannot be cut back to {keep} tokens")

    def share(self, source: int, target: int, length: int) -> None:
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def interrupt(self) -> None:
        self._abort.set()

    def decode(self, spans: TokenIds[Span]) -> NDArray[np.float32]:
        self._batch.clear()
        for span in spans:
            self._batch.add(span.tokens, sequence=span.slot, start=span.start, outputs=int(span.samples))
        rows = sum(span.samples for span in spans)
        outcome = self._compute.decode(self._batch.struct)
        if outcome == _NO_ROOM:
            raise NoRoom
        if outcome == _ABORTED:
            self._abort.clear()
            raise DecodeAborted
        if outcome != 0:
            raise EngineDead(f"llama_decode returned {outcome}: {self._messages.last_error()}")
        if rows == 0:
            return np.empty((0, self.num_vocab), dtype=np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape=(rows, self.num_vocab))

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


class _AbortFlag:
    """A flag that stops `llama_decode`. llama.cpp calls the abort callback before each node of its graph.

    A Python callback would wait for the GIL a thousand times per batch, so the callback is C's `strlen` on a two-byte buffer:
    it returns 0 for an empty string and 1, abort, if the first byte is set.
    """

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(2)
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value or 0
        self._callback = llama_cpp.ggml_abort_callback(strlen)

    def attach(self, context: Any) -> None:
        llama_cpp.llama_set_abort_callback(context, self._callback, ctypes.cast(self._buffer, ctypes.c_void_p))

    def set(self) -> None:
        self._buffer[0] = b"\x01"

    def clear(self) -> None:
        self._buffer[0] = b"\x00"
