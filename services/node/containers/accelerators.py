"""Finds the llama.cpp build for this machine's hardware, the accelerators that it can use, and those that one worker gets.

The agent needs neither drivers nor devices: a container of the worker's image, with all devices, lists the accelerators. /sys
and /proc/driver, which a container shares with its host, tell which builds are worth a try.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import msgspec

from services.node.containers.engine import Engine
from services.node.containers.template import Backend, Template
from services.protocol.engine import EngineSettings
from services.protocol.errors import ModelLoadFailed
from services.protocol.reports import Device

log = logging.getLogger(__name__)


class Machine(NamedTuple):
    """The build of llama.cpp that workers use on this machine, and its accelerators."""

    backend: Backend
    devices: tuple[Device, ...]


class Share(NamedTuple):
    """The accelerators of one worker. `devices` are the node's numbers; `engine` numbers these devices from 0."""

    devices: tuple[int, ...]
    engine: EngineSettings


def image_for(backend: Backend, image: str) -> str:
    return image.replace("{backend}", backend)


def find_machine(engine: Engine, template: Template, image: str, backend: Backend | None) -> Machine:
    """`backend` None: the fastest one whose image is here and finds an accelerator, otherwise `cpu`. Raises ModelLoadFailed if
    the image of a given `backend` is missing or finds none."""
    if backend:
        return _machine(engine, template, image_for(backend, image), backend)
    for candidate in backends():
        try:
            return _machine(engine, template, image_for(candidate, image), candidate)
        except ModelLoadFailed as error:
            log.warning("backend not usable: backend=%s error=%r", candidate, error.message)
    return Machine("cpu", ())


def backends(root: Path = Path("/")) -> tuple[Backend, ...]:
    """The builds that may find an accelerator here, fastest first."""
    found: list[Backend] = []
    if (root / "proc/driver/nvidia/version").exists():
        found.append("cuda")
    if any(_is_gpu(node) for node in (root / "sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")):
        found.append("rocm")
    if any((root / "sys/class/drm").glob("renderD*")):
        found.append("vulkan")
    return tuple(found)


def share_of(engine: EngineSettings, count: int) -> Share:
    """The accelerators, of the node's `count`, that a replica's settings use: none without `gpu_layers`, only `main_gpu` if the
    model is not split, otherwise those with a share in `tensor_split` (all if it is empty)."""
    if not engine.gpu_layers:
        return Share((), engine)
    devices = tuple(range(count))
    if engine.split_mode == "none" and engine.main_gpu in devices:
        return Share((engine.main_gpu,), msgspec.structs.replace(engine, main_gpu=0))
    sharing = tuple(device for device, share in zip(devices, engine.tensor_split, strict=False) if share)
    if not sharing or engine.split_mode == "none":
        return Share(devices, engine)
    shares = tuple(engine.tensor_split[device] for device in sharing)
    main = sharing.index(engine.main_gpu) if engine.main_gpu in sharing else 0
    return Share(sharing, msgspec.structs.replace(engine, tensor_split=shares, main_gpu=main))


def _machine(engine: Engine, template: Template, image: str, backend: Backend) -> Machine:
    if backend == "cpu":
        return Machine(backend, ())
    engine.require_image(image)
    answer = engine.output(template.name("accelerators"), template.question(image, backend))
    try:
        devices = msgspec.json.decode(answer, type=tuple[Device, ...])
    except msgspec.MsgspecError as error:
        raise ModelLoadFailed(f"{image} did not list its accelerators") from error
    if not devices:
        raise ModelLoadFailed(f"{image} finds no accelerator on this node")
    return Machine(backend, devices)


def _is_gpu(gpu_id: Path) -> bool:
    """AMD's driver also lists processors, with the id 0."""
    return gpu_id.read_text().strip() != "0"
