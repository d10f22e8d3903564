"""A machine's cores, memory and devices: on this machine, and on machines made of files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from services.node import hardware
from services.process.cpus import num_cpus
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


def test_this_machine_has_plausible_values() -> None:
    memory = hardware.memory()
    assert 0 < memory.available <= memory.total <= psutil.virtual_memory().total
    assert 1 <= num_cpus() <= (os.cpu_count() or 1)


def test_container_limits_count(tmp_path: Path) -> None:
    root = container(
        tmp_path,
        memory_max=str(GIB),
        memory_current=str(GIB // 2),
        memory_stat=f"anon 5\ninactive_file {GIB // 4}",
        cpu_max="50000 100000",
    )
    assert hardware.memory(root) == (GIB, GIB - GIB // 4)
    assert num_cpus(root) == 1


def old_container(root: Path, **files: str) -> Path:
    """Cgroups version 1 as a container sees them: its files are at the top, although the path is the host's."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(
        "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc\n"
    )
    for name, text in files.items():
        controller, _, file = name.partition("_")
        folder = root / "sys/fs/cgroup" / controller
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{controller}.{file}").write_text(text + "\n")
    return root


def test_container_limits_of_cgroups_1_count(tmp_path: Path) -> None:
    root = old_container(
        tmp_path,
        memory_limit_in_bytes=str(GIB),
        memory_usage_in_bytes=str(GIB // 2),
        memory_stat=f"inactive_file 7\ntotal_inactive_file {GIB // 4}",
        cpu_cfs_quota_us="50000",
        cpu_cfs_period_us="100000",
    )
    assert hardware.memory(root) == (GIB, GIB - GIB // 4)
    assert num_cpus(root) == 1


def test_cgroups_1_without_limits(tmp_path: Path) -> None:
    root = old_container(
        tmp_path, memory_limit_in_bytes="9223372036854771712", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000"
    )
    assert hardware.memory(root).total == psutil.virtual_memory().total
    assert num_cpus(root) == len(os.sched_getaffinity(0))


def test_a_container_without_limits(tmp_path: Path) -> None:
    root = container(tmp_path, memory_max="max", cpu_max="max 100000")
    assert hardware.memory(root).total == psutil.virtual_memory().total
    assert num_cpus(root) == len(os.sched_getaffinity(0))


def test_devices_are_those_that_a_worker_lists() -> None:
    card = '[{"kind": "cuda", "name": "H100", "memory_bytes": 85899345920}]'
    assert hardware.devices(["sh", "-c", 'echo "$CARDS"'], {"CARDS": card}) == (Device("cuda", "H100", 80 * GIB),)
    assert hardware.devices(["echo", "[]"], {}) == ()


def test_the_real_worker_lists_devices() -> None:
    assert hardware.devices([sys.executable, "-m", "services.worker.accelerators"], os.environ) is not None


@pytest.mark.parametrize("script", ["exit 9", "exec sleep 60", "echo no JSON", "echo '[{}]'"])
def test_no_devices_if_the_program_fails(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr("services.node.hardware._DEVICES_TIMEOUT_S", 0.2)
    assert hardware.devices(["sh", "-c", script], {}) is None


def test_no_devices_if_the_program_is_missing() -> None:
    assert hardware.devices(["/nowhere"], {}) is None
