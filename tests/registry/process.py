"""Starts a registry as a process."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.registry.conftest import ROOT, TOKEN


def start(**environment: str) -> subprocess.Popen[str]:
    settings = {"CORRAL_REGISTRY_TOKEN": TOKEN, "CORRAL_REGISTRY_PORT": "0", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "services.registry"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith(("CORRAL_", "OLLAMA_"))} | settings,
        stderr=subprocess.PIPE,
        text=True,
    )
