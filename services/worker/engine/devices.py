"""The devices that llama.cpp can compute on: its CPU backends, and the accelerators visible to this process.

CUDA_VISIBLE_DEVICES and similar variables apply.

llama_cpp's bindings leave out these functions (ggml/include/ggml-backend.h), but its library exports them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llama_cpp._ggml import libggml, libggml_base_path

#: From ggml's enum ggml_backend_dev_type. An integrated GPU (2) does not count: it shares the machine's memory, which is
#: counted already.
_GPU = 1

_SIZE = ctypes.c_size_t


@dataclass(frozen=True)
class Accelerator:
    """`kind` is the ggml backend (CUDA, ROCm, Vulkan, MTL for Metal). Memory in bytes; 0 on macOS (main memory)."""

    kind: str
    name: str
    memory_free: int
    memory_total: int


def load_backends() -> None:
    """Loads ggml's backends, unless they are compiled in.

    A portable build ships each backend as a separate library, with several for the CPU; ggml picks the best that this CPU
    supports. llama.cpp would search for them next to the Python executable, so the folder is passed.
    """
    if not _call("ggml_backend_reg_count", _SIZE):
        _call("ggml_backend_load_all_from_path", None, ctypes.c_char_p(bytes(libggml_base_path)))


def accelerators() -> tuple[Accelerator, ...]:
    """The GPUs that ggml sees. The first call initializes the drivers, which takes a moment and some device memory."""
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
    """Calls a function of libggml. Passes integers as pointers, because ctypes would truncate a handle to 32 bits."""
    call = libggml[function]
    call.restype = result
    return call(*(ctypes.c_void_p(argument) if isinstance(argument, int) else argument for argument in arguments))
