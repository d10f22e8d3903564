"""Continuous batching over llama.cpp. Knows nothing about Redis, HTTP or the rest of the platform."""

import os

#: How many times a llama.cpp thread polls for the others at a barrier before it sleeps. With libgomp's default of 300,000,
#: waiting threads burn their cores for milliseconds while the late thread has no core
#: (docs/decisions/0014-cores-are-shared.md). libgomp reads the variable once, when llama.cpp is loaded.
SPIN_COUNT = 100_000

if "OMP_WAIT_POLICY" not in os.environ:  # noqa: TID251 libgomp's variable, not one of our settings
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))  # noqa: TID251
