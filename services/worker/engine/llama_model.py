"""From settings to what llama.cpp takes, and its refusals as ModelUnusable: models, their contexts, LoRA adapters, its log."""

from __future__ import annotations

import ctypes
import logging
import os
from collections import deque
from pathlib import Path
from typing import Any, ClassVar

from llama_cpp import llama_cpp

from services.protocol.engine import EngineSettings
from services.worker.engine.devices import load_backends
from services.worker.engine.runner import LoadCancelled, ModelUnusable, OnProgress

log = logging.getLogger(__name__)

#: The context of a slot where neither the deployment nor the model asks for less.
DEFAULT_CONTEXT_TOKENS = 4096

_SPLIT_MODES = {
    "none": llama_cpp.LLAMA_SPLIT_MODE_NONE,
    "layer": llama_cpp.LLAMA_SPLIT_MODE_LAYER,
    "row": llama_cpp.LLAMA_SPLIT_MODE_ROW,
}
#: By mmap and mlock. AUTO is mmap unless an accelerator loads faster without.
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


def threads_used(settings: EngineSettings) -> int:
    """Every core that this process may use, where the settings do not say."""
    if settings.threads:
        return settings.threads
    # macOS knows no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_llama() -> None:
    """Before anything else of llama.cpp. Done twice it does no harm."""
    load_backends()
    llama_cpp.llama_backend_init()


def load_model(path: Path, settings: EngineSettings, messages: LogLines, on_progress: OnProgress) -> Any:
    """A `llama_model`. Raises ModelUnusable, or LoadCancelled where `on_progress` said so."""
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


def slot_context(model: Any, settings: EngineSettings) -> int:
    """Tokens that one slot may hold."""
    trained: int = llama_cpp.llama_model_n_ctx_train(model)
    # Positions that are scaled down reach as much further.
    longest = int(trained / settings.rope_freq_scale) if settings.rope_freq_scale else trained
    wanted = min(settings.context_tokens or DEFAULT_CONTEXT_TOKENS, longest)
    if not settings.kv_tokens:
        return wanted
    cells = settings.kv_tokens if settings.kv_unified else settings.kv_tokens // settings.slots
    return max(1, min(wanted, cells))


def num_slots(model: Any, settings: EngineSettings) -> int:
    """A recurrent model has a state for each sequence, kept or not: then no more of them than may run."""
    return settings.sequences if can_be_cut(model) else settings.slots


def can_be_cut(model: Any) -> bool:
    """Whether what the memory holds of a sequence can be cut back to an earlier token: not a recurrent state."""
    return not (llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model))


def new_context(model: Any, settings: EngineSettings, messages: LogLines) -> Any:
    """A `llama_context` for generation. Raises ModelUnusable, and frees the model, where llama.cpp refuses the settings."""
    params = context_params(settings)
    params.n_ctx = settings.kv_tokens or slot_context(model, settings) * settings.slots
    params.n_batch = params.n_ubatch = settings.batch_tokens
    params.n_seq_max = num_slots(model, settings)
    # Every sequence samples at most one token a step; the default would hold a row of logits for each token of a batch. llama.cpp
    # wants a row for each slot, though only as many as may run are ever used.
    params.n_outputs_max = params.n_seq_max
    params.kv_unified = settings.kv_unified
    # A full-size cache keeps what lies behind a sliding window, so that a prefix can be reused in models that have one.
    params.swa_full = True
    return init_context(model, params, messages)


def context_params(settings: EngineSettings) -> Any:
    """What contexts of every kind have in common."""
    params = llama_cpp.llama_context_default_params()
    params.n_threads = params.n_threads_batch = threads_used(settings)
    params.type_k, params.type_v = _KV_TYPES[settings.kv_type_k], _KV_TYPES[settings.kv_type_v]
    params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attention]
    params.rope_freq_base, params.rope_freq_scale = settings.rope_freq_base, settings.rope_freq_scale
    params.no_perf = True
    return params


def init_context(model: Any, params: Any, messages: LogLines) -> Any:
    """Raises ModelUnusable, and frees the model, where llama.cpp refuses the parameters."""
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        llama_cpp.llama_model_free(model)
        raise ModelUnusable(f"llama.cpp cannot make a context of {params.n_ctx} tokens: {messages.last_error()}")
    return context


def apply_adapters(model: Any, context: Any, settings: EngineSettings, messages: LogLines) -> None:
    """Makes every sequence of the context run with the LoRA adapters, which belong to the model and end with it. Raises
    ModelUnusable."""
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
    """llama.cpp reads as many as there may be devices."""
    limit = llama_cpp.llama_max_devices()
    if len(shares) > limit:
        raise ModelUnusable(f"tensor_split names {len(shares)} devices and this build of llama.cpp knows at most {limit}")
    return (ctypes.c_float * limit)(*shares)


class _Progress:
    """`callback` must outlive the loading: ctypes keeps no reference to what C holds."""

    def __init__(self, on_progress: OnProgress) -> None:
        self.cancelled = False
        self._on_progress = on_progress
        self.callback = llama_cpp.llama_progress_callback(self._take)

    def _take(self, fraction: float, _data: Any) -> bool:
        self.cancelled = not self._on_progress(fraction)
        return not self.cancelled


class LogLines:
    """llama.cpp's log: errors and warnings are kept for messages of our own, the rest goes to the debug log.

    The callback is process-wide, and so is the newest of these, which takes the lines; a process holds one model.
    """

    _newest: ClassVar[LogLines]

    _LEVELS = {2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}  # GGML_LOG_LEVEL_INFO, _WARN, _ERROR

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=20)
        self._callback = llama_cpp.llama_log_callback(self._take)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        # C keeps the callback for as long as the process lives; ctypes does not know that.
        LogLines._newest = self

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
