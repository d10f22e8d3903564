"""LlamaEmbedder: a pooled model on llama.cpp.

Each input of a batch is a separate sequence. A batch is a single micro-batch, because the tokens of an input must attend to
each other. Encoders keep nothing between batches; a decoder's KV cache is cleared after each.
"""

from __future__ import annotations

from collections.abc import Sequence as TokenIds
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from services.protocol.engine import MAX_SEQUENCES, EngineSettings, Pooling
from services.weights.memory import input_context_tokens
from services.worker.engine.embedder import Framing
from services.worker.engine.llama_batch import LlamaBatch
from services.worker.engine.llama_compute import LlamaCompute
from services.worker.engine.llama_model import (
    LogLines,
    context_params,
    control_texts,
    init_context,
    load_model,
    start_llama,
    trained_context,
)
from services.worker.engine.runner import EngineDead, OnProgress

_POOLING = {
    "mean": llama_cpp.LLAMA_POOLING_TYPE_MEAN,
    "cls": llama_cpp.LLAMA_POOLING_TYPE_CLS,
    "last": llama_cpp.LLAMA_POOLING_TYPE_LAST,
    "rank": llama_cpp.LLAMA_POOLING_TYPE_RANK,
}


class LlamaEmbedder:
    """Implements Embedder for a GGUF file. Raises ModelUnusable if the file cannot be loaded, LoadCancelled if `on_progress`
    returns False."""

    def __init__(
        self, path: Path, settings: EngineSettings, *, pooling: Pooling, on_progress: OnProgress = lambda _: True
    ) -> None:
        self._messages = LogLines()
        start_llama()
        self._model = load_model(path, settings, self._messages, on_progress)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.pooling = pooling
        self.num_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.context_tokens = input_context_tokens(trained_context(self._model), settings)
        self.batch_tokens = settings.batch_tokens
        capacity = max(self.batch_tokens, self.context_tokens)
        self.max_sequences = min(MAX_SEQUENCES, capacity)  # llama.cpp aborts if there are more sequences than tokens
        self.framing = self._framing()
        self.control_texts = control_texts(self._vocab)
        self._context = self._new_context(settings, capacity)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._compute = LlamaCompute(self._context, settings)
        self._batch = LlamaBatch(capacity)
        self._width = (
            llama_cpp.llama_model_n_cls_out(self._model) if pooling == "rank" else llama_cpp.llama_model_n_embd_out(self._model)
        )

    @property
    def threads(self) -> int:
        return self._compute.threads

    def _new_context(self, settings: EngineSettings, capacity: int) -> Any:
        params = context_params(settings)
        params.n_ctx = params.n_batch = params.n_ubatch = capacity
        params.n_seq_max = self.max_sequences
        params.kv_unified = True
        params.embeddings = True
        params.pooling_type = _POOLING[self.pooling]
        return init_context(self._model, params, settings, self._messages)

    def _framing(self) -> Framing:
        def token(found: int) -> int | None:
            return None if found == llama_cpp.LLAMA_TOKEN_NULL else found

        template = llama_cpp.llama_model_chat_template(self._model, b"rerank")
        return Framing(
            bos=token(llama_cpp.llama_vocab_bos(self._vocab)),
            eos=token(llama_cpp.llama_vocab_eos(self._vocab)),
            sep=token(llama_cpp.llama_vocab_sep(self._vocab)),
            add_bos=llama_cpp.llama_vocab_get_add_bos(self._vocab),
            add_eos=llama_cpp.llama_vocab_get_add_eos(self._vocab),
            add_sep=llama_cpp.llama_vocab_get_add_sep(self._vocab),
            rerank_template=template.decode() if template else None,
        )

    def tokenize(self, text: str, *, framed: bool, special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        while True:
            tokens = (llama_cpp.llama_token * room)()
            found = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, framed, special)
            if found >= 0:
                return tokens[:found]
            room = -found

    def embed(self, inputs: TokenIds[TokenIds[int]]) -> NDArray[np.float32]:
        self._batch.clear()
        for sequence, ids in enumerate(inputs):
            self._batch.add(ids, sequence=sequence, start=0, outputs=len(ids))
        outcome = self._compute.decode(self._batch.struct)
        if outcome != 0:
            raise EngineDead(f"llama_decode returned {outcome}: {self._messages.last_error()}")
        rows = np.array([self._pooled(sequence) for sequence in range(len(inputs))])
        if self._memory:
            llama_cpp.llama_memory_clear(self._memory, False)
        return rows

    def _pooled(self, sequence: int) -> NDArray[np.float32]:
        row = llama_cpp.llama_get_embeddings_seq(self._context, sequence)
        return np.ctypeslib.as_array(row, shape=(self._width,)).copy()

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)
