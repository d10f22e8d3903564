"""The one template of worker containers, as the body of the Docker Engine's `POST /containers/create`. Pure.

Nothing of it comes from a request: a Start job names a model in this node's store, engine settings and an image, and the rest is
fixed here. A worker has a root file system that it cannot write, no capabilities, no way to gain any, a user that is not root, the
store read-only, and no more memory than placement reserved for it and some slack.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from services.node.runtime import KILL_GRACE_S, StartSpec

#: What llama.cpp was built for.
Backend = Literal["cpu", "cuda", "rocm", "vulkan"]

NODE_LABEL = "ai.corral.node"
REPLICA_LABEL = "ai.corral.replica"
VERSION_LABEL = "ai.corral.version"

WORKER: Sequence[str] = ("python", "-m", "services.worker")
ACCELERATORS: Sequence[str] = ("python", "-m", "services.worker.accelerators")

#: An estimate that is a little short must not cost answers: a worker may take so much more than placement reserved for it.
MEMORY_FACTOR = 1.25
MEMORY_SLACK_BYTES = 256 * 1024**2

#: Threads count. llama.cpp starts two for each core.
PIDS = 2048

#: Drivers keep what they compiled there.
_HOME = {"HOME": "/tmp"}
_PULSE = "/tmp/pulse"
#: Workers report every second. Looking costs 30 ms of a core.
_PULSE_WITHIN_S = 10
_NANOSECONDS = 1_000_000_000

#: How each build is told which devices are its own; CUDA's come as the container's devices.
_VISIBLE = {"rocm": "HIP_VISIBLE_DEVICES", "vulkan": "GGML_VK_VISIBLE_DEVICES"}
_DEVICE_FILES = {"rocm": ("/dev/kfd", "/dev/dri"), "vulkan": ("/dev/dri",)}


@dataclass(frozen=True)
class Template:
    """`store` is mounted at its own path, from the named volume or host folder `volume`. `gpus` are the accelerators that Corral may use,
    all where there are none named; the devices of a worker count within them."""

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
        """`cpus` is how many the machine has: more cannot be granted."""
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
                "Test": ["CMD", "python", "-m", "services.worker.pulse", _PULSE, str(_PULSE_WITHIN_S)],
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
                # The loop that talks to Redis runs beside the threads that compute.
                "NanoCpus": min(spec.engine.threads + 1, cpus) * _NANOSECONDS if spec.engine.threads else 0,
                "Ulimits": [{"Name": "memlock", "Soft": -1, "Hard": -1}] if spec.engine.mlock else [],
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
            },
        }

    def question(self, image: str, backend: Backend) -> dict[str, Any]:
        """A container that prints the accelerators that the image's llama.cpp finds."""
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
    """0: none."""
    return int(reserved * MEMORY_FACTOR) + MEMORY_SLACK_BYTES if reserved else 0


def _process(image: str, command: Sequence[str]) -> dict[str, Any]:
    return {"Image": image, "Entrypoint": list(command), "Cmd": [], "User": _user(), "StopSignal": "SIGTERM"}


def _confined(backend: Backend, numbers: Sequence[str] | None) -> dict[str, Any]:
    """With the accelerators of these numbers; None: with all."""
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
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # in which the engine numbers them
    # An engine whose default runtime is NVIDIA's gives every card to an image that does not refuse them.
    return {
        "NVIDIA_VISIBLE_DEVICES": "void",
        **({_VISIBLE[backend]: ",".join(numbers)} if numbers and backend in _VISIBLE else {}),
    }


def _variables(environment: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]


def _user() -> str:
    """The agent's own, who can read what the agent has stored. Root's part is played by nobody."""
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else "65534:65534"


def _groups(files: Sequence[str]) -> list[str]:
    """Those that may use the device files, as far as the agent sees these itself."""
    found = [path for file in files for path in (Path(file), *Path(file).glob("renderD*")) if path.exists()]
    return sorted({str(path.stat().st_gid) for path in found if path.stat().st_gid})
