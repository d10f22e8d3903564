"""The state of NVIDIA GPUs, read from the driver (NVML). Unlike opening a device, this takes no device memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import pynvml

log = logging.getLogger(__name__)


class Gpu(NamedTuple):
    """One GPU. Bytes, watts, degrees Celsius; `utilization` is the part of the time (0 to 1) in which a kernel ran. None: the
    driver does not report it."""

    number: int
    name: str
    memory_total: int | None
    memory_used: int | None
    utilization: float | None
    power: float | None
    temperature: float | None


class Gpus:
    """The machine's GPUs; none without NVIDIA's driver. Thread-safe. `nvml` is the pynvml module."""

    def __init__(self, nvml: Any = pynvml) -> None:
        self._nvml = nvml
        self._handles: list[Any] = []
        try:
            nvml.nvmlInit()
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            log.debug("no NVIDIA driver: error=%r", str(error))

    def read(self) -> list[Gpu]:
        return [self._read(index, handle) for index, handle in enumerate(self._handles)]

    def _read(self, index: int, handle: Any) -> Gpu:
        nvml = self._nvml
        name = self._ask(nvml.nvmlDeviceGetName, handle)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        return Gpu(
            index,
            name.decode() if isinstance(name, bytes) else name or "unknown",
            memory and memory.total,
            memory and memory.used,
            rates and rates.gpu / 100,
            milliwatts and milliwatts / 1000,
            self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        )

    def _ask(self, question: Callable[..., Any], *about: Any) -> Any:
        """The answer; None if this device or driver does not support the question."""
        try:
            return question(*about)
        except self._nvml.NVMLError:
            return None
