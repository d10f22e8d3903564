"""Which llama.cpp a machine's hardware asks for, which accelerators that finds, and which of them one worker gets.

The agent needs neither drivers nor devices: a container of the worker's image, with all of the devices, is asked. Which images are
worth asking is seen in /sys and /proc/driver, which a container shares with its host.
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
    """What workers run on here."""

    backend: Backend
    devices: tuple[Device, ...]


class Share(NamedTuple):
    """`devices` are numbers of accelerators as the node counts them; `engine` counts those alone, from 0."""

    devices: tuple[int, ...]
    engine: EngineSettings


def image_for(backend: Backend, image: str) -> str:
    return image.replace("{backend}", backend)


def find_machine(engine: Engine, template: Template, image: str, backend: Backend | None) -> Machine:
    """`backend` None: the fastest whose image is here and finds an accelerator. Raises ModelLoadFailed where the one that was asked for
    does not."""
    if backend:
        return _machine(engine, template, image_for(backend, image), backend)
    for candidate in backends():
        try:
            return _machine(engine, template, image_for(candidate, image), candidate)
        except ModelLoadFailed as error:
            log.warning("workers do not run on %s: %s", candidate, error.message)
    return Machine("cpu", ())


def backends(root: Path = Path("/")) -> tuple[Backend, ...]:
    """Those that may find an accelerator here, the fastest first."""
    found: list[Backend] = []
    if (root / "proc/driver/nvidia/version").exists():
        found.append("cuda")
    if any(_is_gpu(node) for node in (root / "sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")):
        found.append("rocm")
    if any((root / "sys/class/drm").glob("renderD*")):
        found.append("vulkan")
    return tuple(found)


def share_of(engine: EngineSettings, count: int) -> Share:
    """What of a node's `count` accelerators a replica's settings leave to others: all without layers on any, all but `main_gpu`
    where the model is not split, and those without a share."""
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
        raise ModelLoadFailed(f"{image} does not say which accelerators it finds") from error
    if not devices:
        raise ModelLoadFailed(f"{image} finds no accelerator on this node")
    return Machine(backend, devices)


def _is_gpu(gpu_id: Path) -> bool:
    """The driver of AMD's cards lists processors too, with the id 0."""
    return gpu_id.read_text().strip() != "0"
