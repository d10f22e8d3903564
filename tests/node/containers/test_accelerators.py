"""Which backends fit a machine's hardware, and which accelerators a replica gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.node.containers.accelerators import backends, image_for, share_of
from services.protocol.engine import EngineSettings

NVIDIA = {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module", "sys/class/drm/renderD128": ""}
AMD = {
    "sys/class/kfd/kfd/topology/nodes/0/gpu_id": "0\n",
    "sys/class/kfd/kfd/topology/nodes/1/gpu_id": "51204\n",
    "sys/class/drm/renderD128": "",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ()),
        (NVIDIA, ("cuda", "vulkan")),
        (AMD, ("rocm", "vulkan")),
        ({"sys/class/kfd/kfd/topology/nodes/0/gpu_id": "0\n"}, ()),
        ({"sys/class/drm/card0": "", "sys/class/drm/renderD128": ""}, ("vulkan",)),
    ],
)
def test_backends_follow_the_hardware(tmp_path: Path, files: dict[str, str], expected: tuple[str, ...]) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert backends(tmp_path) == expected


def test_an_image_name_may_contain_the_backend() -> None:
    assert image_for("cuda", "corral-worker:dev-{backend}") == "corral-worker:dev-cuda"
    assert image_for("cuda", "acme/worker:1") == "acme/worker:1"


@pytest.mark.parametrize(
    ("engine", "count", "devices", "adapted"),
    [
        (EngineSettings(), 0, (), EngineSettings()),
        (EngineSettings(), 2, (0, 1), EngineSettings()),
        (EngineSettings(gpu_layers=0), 2, (), EngineSettings(gpu_layers=0)),
        (EngineSettings(split_mode="none"), 2, (0,), EngineSettings(split_mode="none")),
        (EngineSettings(split_mode="none", main_gpu=1), 2, (1,), EngineSettings(split_mode="none")),
        # llama.cpp itself refuses a card that does not exist.
        (EngineSettings(split_mode="none", main_gpu=2), 2, (0, 1), EngineSettings(split_mode="none", main_gpu=2)),
        (EngineSettings(tensor_split=(0, 1)), 2, (1,), EngineSettings(tensor_split=(1,))),
        (EngineSettings(tensor_split=(3, 0, 1), main_gpu=2), 4, (0, 2), EngineSettings(tensor_split=(3, 1), main_gpu=1)),
        (EngineSettings(tensor_split=(3, 1)), 1, (0,), EngineSettings(tensor_split=(3,))),
        (EngineSettings(tensor_split=(0, 0)), 2, (0, 1), EngineSettings(tensor_split=(0, 0))),
        (EngineSettings(tensor_split=(1, 1)), 0, (), EngineSettings(tensor_split=(1, 1))),
    ],
)
def test_a_replica_gets_the_accelerators_of_its_settings(
    engine: EngineSettings, count: int, devices: tuple[int, ...], adapted: EngineSettings
) -> None:
    assert share_of(engine, count) == (devices, adapted)
