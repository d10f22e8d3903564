"""Creates llama.cpp's models and contexts from our settings, applies LoRA adapters, and captures llama.cpp's log."""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from pathlib import Path
from typing import Any, ClassVar

from llama_cpp import llama_cpp

from services.protocol.engine import EngineSettings
from services.weights.memory import kv_cells
from services.worker.engine.cores import num_threads
from services.worker.engine.devices import load_backends
from services.worker.engine.runner import LoadCancelled, ModelUnusable, OnProgress

log = logging.getLogger(__name__)

_SPLIT_MODES = {
    "none": llama_cpp.LLAMA_SPLIT_MODE_NONE,
    "layer": llama_cpp.LLAMA_SPLIT_MODE_LAYER,
    "row": llama_cpp.LLAMA_SPLIT_MODE_ROW,
}
#: By (mmap, mlock). AUTO uses mmap unless an accelerator loads faster without it.
_LOAD_MODES = {
    (True, False): llama_cpp.LLAMA_LOAD_MODE_AUTO,
    (True, True): llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK,
    (False, False): llama_cpp.LLAMA_LOAD_MODE_NONE,
    (False, True): llama_cpp.LLAMA_LOAD_MODE_MLOCK,
}
_FLASH_ATTENTION = {
    "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_KV_TYPES = {
    "f32": llama_cpp.GGML_TYPE_F32,
    "f16": llama_cpp.GGML_TYPE_F16,
    "bf16": 30,  # GGML_TYPE_BF16, which the bindings leave out
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q5_1": llama_cpp.GGML_TYPE_Q5_1,
    "q5_0": llama_cpp.GGML_TYPE_Q5_0,
    "q4_1": llama_cpp.GGML_TYPE_Q4_1,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
    "iq4_nl": llama_cpp.GGML_TYPE_IQ4_NL,
}


def start_llama() -> None:
    """Initializes llama.cpp. Call it before anything else of llama.cpp; calling it again is harmless."""
    load_backends()
    llama_cpp.llama_backend_init()


def load_model(path: Path, settings: EngineSettings, messages: LogLines, on_progress: OnProgress) -> Any:
    """Returns a `llama_model`. Raises ModelUnusable, or LoadCancelled if `on_progress` returns False."""
    progress = _Progress(on_progress)
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = settings.gpu_layers
    params.main_gpu = settings.main_gpu
    params.split_mode = _SPLIT_MODES[settings.split_mode]
    params.load_mode = _LOAD_MODES[settings.mmap, settings.mlock]
    params.progress_callback = progress.callback
    if settings.tensor_split:
        params.tensor_split = _shares(settings.tensor_split)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if model:
        return model
    if progress.cancelled:
        raise LoadCancelled
    raise ModelUnusable(f"llama.cpp cannot load it: {messages.last_error()}")


def trained_context(model: Any) -> int:
    trained: int = llama_cpp.llama_model_n_ctx_train(model)
    return trained


def num_slots(model: Any, settings: EngineSettings) -> int:
    """How many sequences the cache keeps. A recurrent model allocates a state for each, so it keeps only as many as may run."""
    return settings.sequences if can_be_cut(model) else settings.slots


def can_be_cut(model: Any) -> bool:
    """Whether a sequence's memory can be truncated at an earlier token. A recurrent state cannot."""
    return not (llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model))


def control_texts(vocab: Any) -> tuple[str, ...]:
    """The texts of the tokens that `llama_tokenize` produces from text only if it parses special tokens."""
    attributes = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
    return tuple(
        llama_cpp.llama_vocab_get_text(vocab, token).decode(errors="replace")
        for token in range(llama_cpp.llama_vocab_n_tokens(vocab))
        if llama_cpp.llama_vocab_get_attr(vocab, token) & attributes
    )


def new_context(model: Any, settings: EngineSettings, messages: LogLines) -> Any:
    """Returns a `llama_context` for generation (see init_context)."""
    params = context_params(settings)
    params.n_ctx = kv_cells(trained_context(model), settings)
    params.n_batch = params.n_ubatch = settings.batch_tokens
    params.n_seq_max = num_slots(model, settings)
    # A sequence samples at most one token per step; the default would hold a row of logits for each token of a batch. llama.cpp
    # requires a row for each slot, although only as many are used as sequences may run.
    params.n_outputs_max = params.n_seq_max
    params.kv_unified = settings.kv_unified
    # A full-size cache keeps the tokens before the sliding window, so that models with one can reuse a prefix.
    params.swa_full = True
    return init_context(model, params, settings, messages)


def context_params(settings: EngineSettings) -> Any:
    """The parameters that generation and embedding contexts share."""
    params = llama_cpp.llama_context_default_params()
    params.n_threads = params.n_threads_batch = num_threads(settings.threads)
    params.type_k, params.type_v = _KV_TYPES[settings.kv_type_k], _KV_TYPES[settings.kv_type_v]
    params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attention]
    params.rope_freq_base, params.rope_freq_scale = settings.rope_freq_base, settings.rope_freq_scale
    params.no_perf = True
    return params


def init_context(model: Any, params: Any, settings: EngineSettings, messages: LogLines) -> Any:
    """Returns a `llama_context` that applies the LoRA adapters. If llama.cpp refuses the parameters or an adapter, frees the
    model and raises ModelUnusable."""
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        llama_cpp.llama_model_free(model)
        raise ModelUnusable(f"llama.cpp cannot make a context of {params.n_ctx} tokens: {messages.last_error()}")
    try:
        _apply_adapters(model, context, settings, messages)
    except ModelUnusable:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
        raise
    return context


def _apply_adapters(model: Any, context: Any, settings: EngineSettings, messages: LogLines) -> None:
    """Applies the LoRA adapters to every sequence of the context. llama.cpp frees them with the model. Raises ModelUnusable."""
    if not settings.lora:
        return
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * len(settings.lora))()
    for index, (file, _) in enumerate(settings.lora):
        adapters[index] = llama_cpp.llama_adapter_lora_init(model, file.encode())
        if not adapters[index]:
            raise ModelUnusable(f"llama.cpp cannot load the LoRA adapter {file}: {messages.last_error()}")
    scales = (ctypes.c_float * len(settings.lora))(*(scale for _, scale in settings.lora))
    if llama_cpp.llama_set_adapters_lora(context, adapters, len(settings.lora), scales):
        raise ModelUnusable(f"llama.cpp cannot apply the LoRA adapters: {messages.last_error()}")


def _shares(shares: tuple[float, ...]) -> Any:
    """`shares` as a C array of `llama_max_devices()` floats, which is how many llama.cpp reads. Raises ModelUnusable."""
    limit = llama_cpp.llama_max_devices()
    if len(shares) > limit:
        raise ModelUnusable(f"tensor_split has {len(shares)} devices, and this build of llama.cpp supports at most {limit}")
    return (ctypes.c_float * limit)(*shares)


class _Progress:
    """The progress callback of a load. Keep this object until the load ends: ctypes holds no reference for C."""

    def __init__(self, on_progress: OnProgress) -> None:
        self.cancelled = False
        self._on_progress = on_progress
        self.callback = llama_cpp.llama_progress_callback(self._take)

    def _take(self, fraction: float, _data: Any) -> bool:
        self.cancelled = not self._on_progress(fraction)
        return not self.cancelled


class LogLines:
    """Forwards llama.cpp's log to ours, and keeps its errors so that our error messages can quote the cause.

    llama.cpp has one log callback per process; the newest LogLines receives the lines.
    """

    _newest: ClassVar[LogLines]

    _LEVELS = {2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}  # GGML_LOG_LEVEL_INFO, _WARN, _ERROR

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=20)
        self._callback = llama_cpp.llama_log_callback(self._take)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        # C keeps the callback until the process ends, and ctypes holds no reference for it.
        LogLines._newest = self

    def _take(self, level: int, text: bytes, _data: Any) -> None:
        line = text.decode(errors="replace").strip()
        if not line:
            return
        if level == 4:
            self._errors.append(line)
        log.log(self._LEVELS.get(level, logging.DEBUG), "%s", line)

    def last_error(self) -> str:
        """The first of the latest 20 errors, then clears them. llama.cpp logs the cause before its consequences."""
        cause = self._errors[0] if self._errors else "no reason given"
        self._errors.clear()
        return cause
