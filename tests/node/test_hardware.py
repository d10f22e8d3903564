"""What a machine says of itself, on this one and on machines made of files."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from services.node import hardware
from services.protocol.reports import Device

GIB = 1024**3


def container(root: Path, **files: str) -> Path:
    group = root / "sys/fs/cgroup/docker/abc"
    group.mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/docker/abc\n")
    for name, text in files.items():
        (group / name.replace("_", ".")).write_text(text + "\n")
    return root


def smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_this_machine() -> None:
    memory = hardware.memory()
    assert 0 < memory.available <= memory.total <= psutil.virtual_memory().total
    assert 1 <= hardware.cpus() <= (os.cpu_count() or 1)


def test_limits_of_a_container_count(tmp_path: Path) -> None:
    root = container(
        tmp_path,
        memory_max=str(GIB),
        memory_current=str(GIB // 2),
        memory_stat=f"anon 5\ninactive_file {GIB // 4}",
        cpu_max="50000 100000",
    )
    assert hardware.memory(root) == (GIB, GIB - GIB // 4)
    assert hardware.cpus(root) == 1


def test_a_container_without_limits(tmp_path: Path) -> None:
    root = container(tmp_path, memory_max="max", cpu_max="max 100000")
    assert hardware.memory(root).total == psutil.virtual_memory().total
    assert hardware.cpus(root) == len(os.sched_getaffinity(0))


def test_accelerators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, "echo 'NVIDIA H100 80GB HBM3, 81559'; echo 'NVIDIA GB10, [N/A]'", monkeypatch)
    assert hardware.devices() == (Device("cuda", "NVIDIA H100 80GB HBM3", 81559 * 1024**2), Device("cuda", "NVIDIA GB10", 0))


def test_no_accelerators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.devices() == ()


@pytest.mark.parametrize("script", ["exit 9", "exec sleep 60"])
def test_a_driver_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr("services.node.hardware._NVIDIA_TIMEOUT_S", 0.2)
    smi(tmp_path, script, monkeypatch)
    assert hardware.devices() is None
