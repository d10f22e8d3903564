"""The template of worker containers: the body of Docker's `POST /containers/create`. Pure.

A Start job chooses the model in this node's store, the engine settings and the image; everything else is fixed here. A worker
has a read-only root file system, no capabilities and no way to gain any, a user other than root, the store read-only, and a
memory limit of what placement reserved plus some slack.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from services.node.drain import KILL_GRACE_S
from services.node.runtime import StartSpec

#: The hardware that a build of llama.cpp is for.
Backend = Literal["cpu", "cuda", "rocm", "vulkan"]

NODE_LABEL = "ai.corral.node"
REPLICA_LABEL = "ai.corral.replica"
VERSION_LABEL = "ai.corral.version"

WORKER: Sequence[str] = ("python", "-m", "services.worker")
ACCELERATORS: Sequence[str] = ("python", "-m", "services.worker.accelerators")

#: How far a worker may exceed the memory that placement reserved, so that a slightly low estimate does not get it killed.
MEMORY_FACTOR = 1.25
MEMORY_SLACK_BYTES = 256 * 1024**2

#: Limit of processes and threads. llama.cpp starts two threads per core.
PIDS = 2048

#: GPU drivers write their compiled kernels there.
_HOME = {"HOME": "/tmp"}
_PULSE = "/tmp/pulse"
#: The health check fails if the worker has not reported for this long; it reports every second. A check takes 30 ms of CPU
#: time.
_PULSE_MAX_AGE_S = 10
_NANOSECONDS = 1_000_000_000

#: The variable that selects a build's devices. CUDA needs none: Docker passes only the selected devices.
_VISIBLE = {"rocm": "HIP_VISIBLE_DEVICES", "vulkan": "GGML_VK_VISIBLE_DEVICES"}
_DEVICE_FILES = {"rocm": ("/dev/kfd", "/dev/dri"), "vulkan": ("/dev/dri",)}


@dataclass(frozen=True)
class Template:
    """Builds the bodies of the node's containers.

    - `store`: mounted at the same path, from `volume`, which is a named volume or a folder of the host.
    - `gpus`: the accelerators that Corral may use, empty for all. A worker's devices are indexes into it.
    """

    node: str
    network: str
    store: Path
    volume: str
    environment: Mapping[str, str]
    drain_s: float
    gpus: tuple[int, ...] = ()
    command: Sequence[str] = WORKER
    accelerators_command: Sequence[str] = ACCELERATORS

    @property
    def named_volume(self) -> bool:
        return not self.volume.startswith("/")

    def name(self, replica: str) -> str:
        return f"corral-{self.node}-{replica}"

    def worker(self, spec: StartSpec, image: str, backend: Backend, devices: Sequence[int], *, cpus: int) -> dict[str, Any]:
        """The body of a worker's container. `cpus` is the machine's number of cores, the most that Docker grants."""
        memory = memory_limit(spec.memory_bytes)
        numbers = tuple(str(self.gpus[device] if self.gpus else device) for device in devices)
        return {
            **_process(image, self.command),
            "Env": _variables(
                {
                    **self.environment,
                    **spec.environment(drain_s=self.drain_s),
                    **_HOME,
                    **_visible(backend, numbers),
                    "CORRAL_PULSE": _PULSE,
                }
            ),
            "Labels": {NODE_LABEL: self.node, REPLICA_LABEL: spec.replica, VERSION_LABEL: spec.version},
            "Healthcheck": {
                "Test": ["CMD", "python", "-m", "services.worker.pulse", _PULSE, str(_PULSE_MAX_AGE_S)],
                "Interval": 10 * _NANOSECONDS,
                "Timeout": 5 * _NANOSECONDS,
                "StartPeriod": 30 * _NANOSECONDS,
                "Retries": 3,
            },
            "StopTimeout": int(self.drain_s + KILL_GRACE_S),
            "HostConfig": {
                **_confined(backend, numbers),
                "NetworkMode": self.network,
                "Mounts": [self._store()],
                "Memory": memory,
                "MemorySwap": memory,
                # One more core than compute threads, for the event loop that talks to Redis.
                "NanoCpus": min(spec.engine.threads + 1, cpus) * _NANOSECONDS if spec.engine.threads else 0,
                "Ulimits": [{"Name": "memlock", "Soft": -1, "Hard": -1}] if spec.engine.mlock else [],
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
            },
        }

    def question(self, image: str, backend: Backend) -> dict[str, Any]:
        """The body of a container that prints the accelerators that the image's llama.cpp finds."""
        numbers = tuple(map(str, self.gpus)) or None
        return {
            **_process(image, self.accelerators_command),
            "Env": _variables({**self.environment, **_HOME, **_visible(backend, numbers)}),
            "Labels": {NODE_LABEL: self.node},
            "HostConfig": {**_confined(backend, numbers), "NetworkMode": "none"},
        }

    def _store(self) -> dict[str, Any]:
        options = {"VolumeOptions": {"NoCopy": True}} if self.named_volume else {}
        return {
            "Type": "volume" if self.named_volume else "bind",
            "Source": self.volume,
            "Target": str(self.store),
            "ReadOnly": True,
            **options,
        }


def memory_limit(reserved: int) -> int:
    """The container's memory limit in bytes; 0, no limit, if nothing was reserved."""
    return int(reserved * MEMORY_FACTOR) + MEMORY_SLACK_BYTES if reserved else 0


def _process(image: str, command: Sequence[str]) -> dict[str, Any]:
    return {"Image": image, "Entrypoint": list(command), "Cmd": [], "User": _user(), "StopSignal": "SIGTERM"}


def _confined(backend: Backend, numbers: Sequence[str] | None) -> dict[str, Any]:
    """The restrictions of a container, with access to the accelerators of these numbers; None: all of them."""
    return {
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"},
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "Init": True,
        "PidsLimit": PIDS,
        "RestartPolicy": {"Name": "no"},
        **({} if numbers == () else _granted(backend, numbers)),
    }


def _granted(backend: Backend, numbers: Sequence[str] | None) -> dict[str, Any]:
    if backend == "cuda":
        which = {"Count": -1} if numbers is None else {"DeviceIDs": list(numbers)}
        return {"DeviceRequests": [{**which, "Capabilities": [["gpu", "compute", "utility"]]}]}
    files = _DEVICE_FILES.get(backend, ())
    return {
        "Devices": [{"PathOnHost": file, "PathInContainer": file, "CgroupPermissions": "rw"} for file in files],
        "GroupAdd": _groups(files),
    }


def _visible(backend: Backend, numbers: Sequence[str] | None) -> dict[str, str]:
    if backend == "cuda" and numbers != ():
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # the order in which Docker numbers them
    # If Docker's default runtime is NVIDIA's, a container gets every GPU unless its image or this variable says otherwise.
    return {
        "NVIDIA_VISIBLE_DEVICES": "void",
        **({_VISIBLE[backend]: ",".join(numbers)} if numbers and backend in _VISIBLE else {}),
    }


def _variables(environment: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]


def _user() -> str:
    """The agent's user, who can read the store; 65534 if the agent runs as root."""
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else "65534:65534"


def _groups(files: Sequence[str]) -> list[str]:
    """The groups of the device files, as far as the agent can see these files."""
    found = [path for file in files for path in (Path(file), *Path(file).glob("renderD*")) if path.exists()]
    return sorted({str(path.stat().st_gid) for path in found if path.stat().st_gid})
