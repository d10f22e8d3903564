"""NVIDIA's accelerators as their driver sees them now. Looking costs no memory of theirs, unlike opening them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import pynvml

log = logging.getLogger(__name__)


class Gpu(NamedTuple):
    """What a driver does not tell is None. Bytes, watts, degrees Celsius; `utilization` is the part of the time (0 to 1) in which a
    kernel ran."""

    number: int
    name: str
    memory_total: int | None
    memory_used: int | None
    utilization: float | None
    power: float | None
    temperature: float | None


class Gpus:
    """`nvml` is NVIDIA's library; without a driver there are no accelerators. Any thread may look."""

    def __init__(self, nvml: Any = pynvml) -> None:
        self._nvml = nvml
        self._handles: list[Any] = []
        try:
            nvml.nvmlInit()
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            log.debug("no NVIDIA driver: %s", error)

    def look(self) -> list[Gpu]:
        return [self._look(index, handle) for index, handle in enumerate(self._handles)]

    def _look(self, index: int, handle: Any) -> Gpu:
        nvml = self._nvml
        name = self._told(nvml.nvmlDeviceGetName, handle)
        memory = self._told(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._told(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = self._told(nvml.nvmlDeviceGetPowerUsage, handle)
        return Gpu(
            index,
            name.decode() if isinstance(name, bytes) else name or "unknown",
            memory and memory.total,
            memory and memory.used,
            rates and rates.gpu / 100,
            milliwatts and milliwatts / 1000,
            self._told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        )

    def _told(self, question: Callable[..., Any], *about: Any) -> Any:
        """None where this device, or this driver, cannot tell."""
        try:
            return question(*about)
        except self._nvml.NVMLError:
            return None
