"""LlamaRunner: the only module that imports llama_cpp, and of it only the raw C API.

The batch is built here, token by token, because the packaged classes serve one sequence at a time. ctypes releases the GIL
around `llama_decode` and the loading of a model, so claims and frames move meanwhile.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections import deque
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from services.worker.engine.runner import EngineDead, ModelUnusable, NoRoom
from services.worker.engine.scheduler import Span

log = logging.getLogger(__name__)

#: What `llama_decode` returns where no KV cells were found; 0 is success, everything else leaves the context undefined.
_NO_ROOM = 1

#: The context of a slot where neither the deployment nor the model asks for less.
DEFAULT_CONTEXT_TOKENS = 4096


@dataclass(frozen=True)
class LlamaSettings:
    """`context_tokens` per slot, 0: the trained context, at most DEFAULT_CONTEXT_TOKENS. `threads` 0: every core that this
    process may use. `gpu_layers` -1: all. `kv_unified`: one KV buffer for all slots, instead of one stream for each."""

    num_slots: int = 8
    context_tokens: int = 0
    batch_tokens: int = 512
    threads: int = 0
    gpu_layers: int = -1
    kv_unified: bool = True


class LlamaRunner:
    """Implements ModelRunner on a GGUF file. Raises ModelUnusable where the file cannot be loaded."""

    def __init__(self, path: Path, settings: LlamaSettings) -> None:
        self._messages = _LogLines()
        llama_cpp.llama_backend_init()
        self._model = self._load(path, settings)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._context = self._new_context(settings)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = _Batch(settings.batch_tokens)
        self.num_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.num_slots = settings.num_slots
        self.context_tokens = self._slot_context(settings)
        self.partial_reuse = not (
            llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model)
        )
        self.end_tokens = frozenset(
            token for token in range(self.num_vocab) if llama_cpp.llama_vocab_is_eog(self._vocab, token)
        )
        template = llama_cpp.llama_model_chat_template(self._model, None)
        self.chat_template = template.decode() if template else None
        self._bos = llama_cpp.llama_vocab_bos(self._vocab)
        self._add_bos = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self.bos_text = self._piece(self._bos, special=True).decode(errors="replace")
        self.eos_text = self._piece(llama_cpp.llama_vocab_eos(self._vocab), special=True).decode(errors="replace")
        self._pieces: dict[int, bytes] = {}

    def _load(self, path: Path, settings: LlamaSettings) -> Any:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = settings.gpu_layers
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise ModelUnusable(f"llama.cpp cannot load {path.name}: {self._messages.last_error()}")
        return model

    def _slot_context(self, settings: LlamaSettings) -> int:
        trained: int = llama_cpp.llama_model_n_ctx_train(self._model)
        return min(settings.context_tokens or DEFAULT_CONTEXT_TOKENS, trained)

    def _new_context(self, settings: LlamaSettings) -> Any:
        threads = settings.threads or len(os.sched_getaffinity(0))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self._slot_context(settings) * settings.num_slots
        params.n_batch = params.n_ubatch = settings.batch_tokens
        params.n_seq_max = settings.num_slots
        # Every slot samples at most one token a step; the default would hold a row of logits for each token of a batch.
        params.n_outputs_max = settings.num_slots
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = settings.kv_unified
        # A full-size cache keeps what lies behind a sliding window, so that a prefix can be reused in models that have one.
        params.swa_full = True
        params.no_perf = True
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            llama_cpp.llama_model_free(self._model)
            raise ModelUnusable(f"llama.cpp cannot make a context of {params.n_ctx} tokens: {self._messages.last_error()}")
        return context

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        data = text.encode()
        found, ids = self._tokenize(data, special, room=len(data) + 8)
        if found < 0:  # a vocabulary that falls back to bytes makes three tokens of a space
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

    def decode(self, spans: TokenIds[Span]) -> NDArray[np.float32]:
        rows = self._batch.fill(spans)
        outcome = llama_cpp.llama_decode(self._context, self._batch.struct)
        if outcome == _NO_ROOM:
            raise NoRoom
        if outcome != 0:
            raise EngineDead(f"llama_decode returned {outcome}: {self._messages.last_error()}")
        if rows == 0:
            return np.empty((0, self.num_vocab), dtype=np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape=(rows, self.num_vocab))

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


class _Batch:
    """A `llama_batch` over numpy arrays that live as long as it does; each token belongs to one sequence."""

    def __init__(self, capacity: int) -> None:
        self._token = np.zeros(capacity, dtype=np.int32)
        self._pos = np.zeros(capacity, dtype=np.int32)
        self._count = np.ones(capacity, dtype=np.int32)
        self._seq = np.zeros(capacity, dtype=np.int32)
        self._logits = np.zeros(capacity, dtype=np.int8)
        # llama.cpp wants a pointer to the sequence ids of each token.
        self._seq_pointers = self._seq.ctypes.data + np.arange(capacity, dtype=np.uintp) * self._seq.itemsize
        pointer = ctypes.POINTER(ctypes.c_int32)
        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(pointer),
            embd=None,
            pos=self._pos.ctypes.data_as(pointer),
            n_seq_id=self._count.ctypes.data_as(pointer),
            seq_id=self._seq_pointers.ctypes.data_as(ctypes.POINTER(pointer)),
            logits=self._logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, spans: TokenIds[Span]) -> int:
        """Returns how many rows of logits the batch will give."""
        end = 0
        for span in spans:
            start, end = end, end + len(span.tokens)
            self._token[start:end] = span.tokens
            self._pos[start:end] = np.arange(span.start, span.start + len(span.tokens))
            self._seq[start:end] = span.slot
            self._logits[start:end] = 0
            self._logits[end - 1] = span.samples
        self.struct.n_tokens = end
        return sum(span.samples for span in spans)


class _LogLines:
    """llama.cpp's log: errors and warnings are kept for messages of our own, the rest goes to the debug log.

    The callback is process-wide; a process holds one model.
    """

    _LEVELS = {2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}  # GGML_LOG_LEVEL_INFO, _WARN, _ERROR

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=20)
        # ctypes keeps no reference to a callback that C holds.
        self._callback = llama_cpp.llama_log_callback(self._take)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _take(self, level: int, text: bytes, _data: Any) -> None:
        line = text.decode(errors="replace").strip()
        if not line:
            return
        if level == 4:
            self._errors.append(line)
        log.log(self._LEVELS.get(level, logging.DEBUG), "%s", line)

    def last_error(self) -> str:
        """The first of the newest errors: llama.cpp logs the cause before its consequences."""
        cause = self._errors[0] if self._errors else "no reason given"
        self._errors.clear()
        return cause
