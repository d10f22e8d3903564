"""The devices that llama.cpp computes on, of its own build: the processor's kernels, and the accelerators that CUDA_VISIBLE_DEVICES and
its like leave to this process.

llama_cpp's bindings leave these functions out (ggml/include/ggml-backend.h); its library exports them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llama_cpp._ggml import libggml, libggml_base_path

#: ggml's enum ggml_backend_dev_type. An integrated one (2) lives in the machine's own memory, which is counted already.
_GPU = 1

_SIZE = ctypes.c_size_t


@dataclass(frozen=True)
class Accelerator:
    """`kind` is ggml's backend (CUDA, ROCm, Vulkan, MTL for Metal). Memory in bytes, 0 where it is the machine's own."""

    kind: str
    name: str
    memory_free: int
    memory_total: int


def load_backends() -> None:
    """A portable build keeps its backends in libraries of their own, several for the processor; ggml takes the best that it can run.
    llama.cpp alone would look for them beside the Python program. A build for one machine has them in it."""
    if not _call("ggml_backend_reg_count", _SIZE):
        _call("ggml_backend_load_all_from_path", None, ctypes.c_char_p(bytes(libggml_base_path)))


def accelerators() -> tuple[Accelerator, ...]:
    """Asking a driver for the first time takes a moment, and memory of the device."""
    load_backends()
    return tuple(_describe(device) for device in _devices() if _call("ggml_backend_dev_type", ctypes.c_int, device) == _GPU)


def _devices() -> Iterator[int]:
    for index in range(_call("ggml_backend_dev_count", _SIZE)):
        yield _call("ggml_backend_dev_get", ctypes.c_void_p, _SIZE(index))


def _describe(device: int) -> Accelerator:
    free, total = _SIZE(), _SIZE()
    if sys.platform != "darwin":
        _call("ggml_backend_dev_memory", None, device, ctypes.byref(free), ctypes.byref(total))
    backend = _call("ggml_backend_dev_backend_reg", ctypes.c_void_p, device)
    kind = _call("ggml_backend_reg_name", ctypes.c_char_p, backend).decode()
    name = _call("ggml_backend_dev_description", ctypes.c_char_p, device).decode()
    return Accelerator(kind, name, free.value, total.value)


def _call(function: str, result: Any, *arguments: Any) -> Any:
    """Handles come as numbers, which ctypes would cut to 32 bits."""
    call = libggml[function]
    call.restype = result
    return call(*(ctypes.c_void_p(argument) if isinstance(argument, int) else argument for argument in arguments))
