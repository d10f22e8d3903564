"""The container configuration that the template creates, beyond the effects that test_runtime.py checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.node.containers.template import Template
from services.node.runtime import StartSpec
from services.protocol.engine import EngineSettings

GIB = 1024**3
TEMPLATE = Template(
    node="n1",
    network="corral_back",
    store=Path("/var/lib/corral/models"),
    volume="corral_models",
    environment={"CORRAL_NODE": "n1"},
    drain_s=30,
)


def spec(**engine: Any) -> StartSpec:
    return StartSpec("r1", "f" * 64, Path("/var/lib/corral/models/blobs/b"), EngineSettings(**engine), 2 * GIB)


def environment(body: dict[str, Any]) -> dict[str, str]:
    return dict(variable.split("=", 1) for variable in body["Env"])


def test_a_card_is_requested_by_its_number() -> None:
    body = TEMPLATE.worker(spec(), "image", "cuda", (0, 1), cpus=4)
    (request,) = body["HostConfig"]["DeviceRequests"]
    assert request["DeviceIDs"] == ["0", "1"]
    assert "gpu" in request["Capabilities"][0]
    assert "Count" not in request
    assert environment(body)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_card_numbers_are_relative_to_the_allowed_cards() -> None:
    some = replace(TEMPLATE, gpus=(2, 5))
    assert some.worker(spec(), "image", "cuda", (1,), cpus=4)["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] == ["5"]
    assert some.question("image", "cuda")["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] == ["2", "5"]
    assert TEMPLATE.question("image", "cuda")["HostConfig"]["DeviceRequests"][0]["Count"] == -1


@pytest.mark.parametrize(
    ("backend", "files", "variable"),
    [("rocm", ["/dev/kfd", "/dev/dri"], "HIP_VISIBLE_DEVICES"), ("vulkan", ["/dev/dri"], "GGML_VK_VISIBLE_DEVICES")],
)
def test_other_backends_get_device_files_and_numbers(backend: Any, files: list[str], variable: str) -> None:
    body = TEMPLATE.worker(spec(), "image", backend, (1,), cpus=4)
    assert [device["PathOnHost"] for device in body["HostConfig"]["Devices"]] == files
    assert environment(body)[variable] == "1"
    assert "DeviceRequests" not in body["HostConfig"]


@pytest.mark.parametrize("backend", ["cpu", "cuda", "rocm", "vulkan"])
def test_a_worker_without_a_card_sees_none(backend: Any) -> None:
    body = TEMPLATE.worker(spec(gpu_layers=0), "image", backend, (), cpus=4)
    assert not {"Devices", "DeviceRequests"} & body["HostConfig"].keys()
    assert environment(body)["NVIDIA_VISIBLE_DEVICES"] == "void", "where NVIDIA's runtime is the engine's default"


def test_limits_come_from_the_reserved_memory_and_the_threads() -> None:
    host = TEMPLATE.worker(spec(), "image", "cpu", (), cpus=4)["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == int(2.75 * GIB)
    assert host["NanoCpus"] == 0
    assert TEMPLATE.worker(spec(threads=2), "image", "cpu", (), cpus=4)["HostConfig"]["NanoCpus"] == 3_000_000_000
    assert TEMPLATE.worker(spec(threads=8), "image", "cpu", (), cpus=4)["HostConfig"]["NanoCpus"] == 4_000_000_000
    unknown = StartSpec("r1", "f" * 64, Path("/blob"), EngineSettings())
    assert TEMPLATE.worker(unknown, "image", "cpu", (), cpus=4)["HostConfig"]["Memory"] == 0


def test_the_store_is_a_volume_or_a_folder() -> None:
    (mount,) = TEMPLATE.worker(spec(), "image", "cpu", (), cpus=4)["HostConfig"]["Mounts"]
    assert (mount["Type"], mount["Source"], mount["Target"]) == ("volume", "corral_models", "/var/lib/corral/models")
    (mount,) = replace(TEMPLATE, volume="/srv/models").worker(spec(), "i", "cpu", (), cpus=4)["HostConfig"]["Mounts"]
    assert (mount["Type"], mount["Source"], mount["Target"]) == ("bind", "/srv/models", "/var/lib/corral/models")
    assert mount["ReadOnly"] is True


def test_locked_memory_is_allowed_if_mlock_is_set() -> None:
    assert TEMPLATE.worker(spec(mlock=True), "i", "cpu", (), cpus=4)["HostConfig"]["Ulimits"][0]["Name"] == "memlock"
    assert TEMPLATE.worker(spec(), "i", "cpu", (), cpus=4)["HostConfig"]["Ulimits"] == []
