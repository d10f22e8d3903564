"""`python -m services.worker.accelerators` prints the devices that llama.cpp can offload to, as JSON, for the node agent.

Cards that this build does not support, or that CUDA_VISIBLE_DEVICES hides, are left out: no worker could use them.
"""

from __future__ import annotations

import sys

import msgspec

from services.protocol.reports import Device
from services.worker.engine.devices import accelerators


def main() -> None:
    found = [Device(device.kind.lower(), device.name, device.memory_total) for device in accelerators()]
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
