"""GPUs through NVIDIA's library. Most test machines have none, so the library is a stand-in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from services.node.gpus import Gpu, Gpus


class NVMLError(Exception):
    """The error of the stand-in library."""


class Nvml:
    """Two GPUs; the second one does not report its power and load."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *, driver: bool = True) -> None:
        self._driver = driver

    def nvmlInit(self) -> None:
        if not self._driver:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> Any:
        return "NVIDIA H100" if handle == 0 else b"Tesla T4"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=80, used=20 + handle)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if handle == 1:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 1:
            raise NVMLError("Not Supported")
        return 350_000

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 40 + handle


def test_gpus_of_the_driver() -> None:
    assert Gpus(Nvml()).read() == [
        Gpu(0, "NVIDIA H100", 80, 20, 0.5, 350.0, 40),
        Gpu(1, "Tesla T4", 80, 21, None, None, 41),
    ]


def test_no_driver_means_no_gpus() -> None:
    assert Gpus(Nvml(driver=False)).read() == []


def test_the_real_library_may_find_no_gpus() -> None:
    for gpu in Gpus().read():
        assert gpu.memory_total
