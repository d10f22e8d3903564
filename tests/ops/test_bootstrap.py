"""`ops/bootstrap.sh` in a separate checkout, with a scripted uv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: The programs that the script uses and that every Debian has.
TOOLS = (
    *("bash", "cat", "cut", "df", "dirname", "env", "grep", "head", "ln", "mkdir", "nproc", "rm"),
    *("sed", "sha256sum", "sleep", "sort", "tail", "tee", "tr"),
)

UV = """#!/usr/bin/env bash
if [ "$1" = --version ]; then echo "uv {version} (test)"; exit; fi
echo "$*" >>"$0.asked"
{body}
"""

SUCCESS = "mkdir -p .venv/bin .venv/lib/python3.11/site-packages/llama_cpp; ln -sf /bin/true .venv/bin/python"


class Checkout:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.bin = path / "tools"
        self.bin.mkdir()
        (path / "ops").mkdir()
        for name in ("pyproject.toml", "uv.lock", "ops/bootstrap.sh", "ops/fetch_uv.py"):
            shutil.copy(ROOT / name, path / name)
        for tool in (*TOOLS, "c++"):
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        (self.bin / "python3").symlink_to(sys.executable)

    def uv(self, body: str, *, version: str = "0.13.9") -> None:
        (self.bin / "uv").write_text(UV.format(version=version, body=body))
        (self.bin / "uv").chmod(0o755)

    @property
    def asked(self) -> list[str]:
        log = self.bin / "uv.asked"
        return log.read_text().splitlines() if log.exists() else []

    def program(self, name: str, folder: Path | None = None) -> Path:
        """Creates a program that does nothing, on the PATH or in `folder`."""
        program = (folder or self.bin) / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        return program

    def run(self, *groups: str, **others: str) -> subprocess.CompletedProcess[str]:
        variables = {"PATH": str(self.bin), "HOME": str(self.path), **others}
        return subprocess.run(
            ["ops/bootstrap.sh", *groups], cwd=self.path, env=variables, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_everything_is_installed_once(checkout: Checkout) -> None:
    checkout.uv(SUCCESS)
    first = checkout.run()
    assert (first.returncode, first.stdout) == (0, "")
    assert "llama.cpp is compiled for this machine: " in first.stderr
    assert checkout.asked == ["sync --offline --locked --all-extras --compile-bytecode --verbose"]
    started = time.monotonic()
    second = checkout.run()
    assert time.monotonic() - started < 0.3
    assert (second.returncode, second.stderr, len(checkout.asked)) == (0, "", 1)


def test_the_index_is_used_only_for_missing_packages(checkout: Checkout) -> None:
    checkout.uv(f'[ "$2" != --offline ] || exit 1\n{SUCCESS}')
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    offline, online = checkout.asked
    assert offline.replace(" --offline", "") == online


def test_a_changed_lock_installs_again_without_a_message_about_compiling(checkout: Checkout) -> None:
    checkout.uv(SUCCESS)
    checkout.run()
    with (checkout.path / "uv.lock").open("a") as lock:
        lock.write("\n")
    again = checkout.run()
    assert (again.returncode, len(checkout.asked)) == (0, 2)
    assert "compiled" not in again.stderr


def test_a_requested_group_is_added_and_stays(checkout: Checkout) -> None:
    checkout.uv(SUCCESS)
    checkout.run()
    checkout.run("bench")
    assert checkout.asked[1:] == ["sync --offline --locked --all-extras --group bench --compile-bytecode --verbose"]
    checkout.run()
    checkout.run("bench")
    assert len(checkout.asked) == 2


def test_an_installation_without_the_group_does_not_count_as_one_with_it(checkout: Checkout) -> None:
    checkout.uv(SUCCESS)
    checkout.run("bench")
    with (checkout.path / "uv.lock").open("a") as lock:
        lock.write("\n")
    checkout.run()
    checkout.run("bench")
    assert len(checkout.asked) == 3


def test_the_progress_of_the_compilation_is_shown(checkout: Checkout) -> None:
    checkout.uv(f"echo 'DEBUG [69/78] /usr/bin/g++ -c x.cpp' >&2; sleep 1; {SUCCESS}")
    assert "compiling llama.cpp: 69 of 78, less than a minute left\n" in checkout.run().stderr


def test_a_missing_compiler_is_an_error_before_anything_runs(checkout: Checkout) -> None:
    checkout.uv(SUCCESS)
    (checkout.bin / "c++").unlink()
    done = checkout.run()
    assert (done.returncode, checkout.asked) == (1, [])
    assert done.stderr == (
        "Error: llama.cpp must be compiled, and there is no C++ compiler; install one, on Debian with: apt install build-essential\n"
    )


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("error: failed to write: No space left on device (os error 28)", "the disk is full ("),
        ("error: No interpreter found for Python >=3.11", "Corral needs Python 3.11 or newer; this machine has Python 3"),
        ("error: error sending request for url (https://pypi.org/simple/x/)", "the package index could not be reached"),
        ("  x Failed to build llama-cpp-python\n  cmake said no", "the environment could not be installed: cmake said no"),
    ],
)
def test_failures_are_one_sentence_with_the_log(checkout: Checkout, output: str, message: str) -> None:
    checkout.uv(f"echo '{output}' >&2; echo DEBUG end >&2; exit 2")
    done = checkout.run()
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"Error: {message}")
    assert last.endswith(f"(log: {checkout.path}/.uv/sync.log)")
    assert checkout.run().returncode == 1, "it is tried again, not taken for done"


def test_an_old_uv_is_ignored(checkout: Checkout) -> None:
    checkout.uv(SUCCESS, version="0.8.22")
    (checkout.bin / "python3").unlink()
    done = checkout.run()
    assert (done.returncode, checkout.asked) == (1, [])
    assert done.stderr == "Error: there is no python3; install it, on Debian with: apt install python3 python3-venv\n"


def test_uv_is_downloaded_if_python_has_no_venv_and_no_pip(checkout: Checkout) -> None:
    """With a stand-in for the download."""
    (checkout.bin / "python3").unlink()
    checkout.uv(SUCCESS)
    (checkout.bin / "uv").rename(checkout.path / "uv")
    python = f"""#!/usr/bin/env bash
case "$*" in
    "ops/fetch_uv.py "*) mkdir -p .uv/bin && cat {checkout.path}/uv >.uv/bin/uv && {shutil.which("chmod")} +x .uv/bin/uv ;;
    *) echo "No module named $2"; exit 1 ;;
esac
"""
    (checkout.bin / "python3").write_text(python)
    (checkout.bin / "python3").chmod(0o755)
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    assert "Downloading uv " in done.stderr


CUDA = "--config-settings-package llama-cpp-python:cmake.define.GGML_CUDA=ON"


def test_cuda_is_chosen_with_its_compiler_and_a_driver(checkout: Checkout) -> None:
    checkout.uv('echo "$CUDACXX" >"$0.cudacxx"; ' + SUCCESS)
    nvcc = checkout.program("nvcc")
    checkout.program("nvidia-smi")
    done = checkout.run()
    assert f"It is compiled for CUDA too, which takes longer, with {nvcc}.\n" in done.stderr
    assert checkout.asked == [f"sync --offline --locked --all-extras {CUDA} --compile-bytecode --verbose"]
    assert (checkout.bin / "uv.cudacxx").read_text() == f"{nvcc}\n"


def test_cuda_home_is_searched_for_the_compiler(checkout: Checkout) -> None:
    checkout.uv(SUCCESS)
    checkout.program("nvidia-smi")
    nvcc = checkout.program("nvcc", checkout.path / "cuda" / "bin")
    assert f", with {nvcc}." in checkout.run(CUDA_HOME=str(checkout.path / "cuda")).stderr


def test_without_a_driver_cuda_is_not_chosen(checkout: Checkout) -> None:
    checkout.uv(SUCCESS)
    checkout.program("nvcc")
    done = checkout.run()
    assert "for the CPU only: there is a CUDA compiler, but no NVIDIA driver (nvidia-smi); " in done.stderr
    assert "config-settings" not in checkout.asked[0]


def test_metal_is_chosen_on_apple_silicon(checkout: Checkout) -> None:
    checkout.uv(SUCCESS)
    done = checkout.run(OSTYPE="darwin23", HOSTTYPE="arm64")
    assert "It is compiled for Metal too.\n" in done.stderr
    assert "llama-cpp-python:cmake.define.GGML_METAL=ON" in checkout.asked[0]


@pytest.mark.parametrize(
    ("accelerator", "option"), [("vulkan", "GGML_VULKAN"), ("rocm", "GGML_HIP"), ("cuda", "GGML_CUDA"), ("none", "")]
)
def test_a_configured_accelerator_is_used(checkout: Checkout, accelerator: str, option: str) -> None:
    checkout.uv(SUCCESS)
    for name in ("nvcc", "nvidia-smi"):
        checkout.program(name)
    assert ", as CORRAL_ACCELERATOR says.\n" in checkout.run(CORRAL_ACCELERATOR=accelerator).stderr
    assert (f"cmake.define.{option}=ON" in checkout.asked[0]) == bool(option)


def test_an_unknown_accelerator_is_refused(checkout: Checkout) -> None:
    checkout.uv(SUCCESS)
    done = checkout.run(CORRAL_ACCELERATOR="tpu")
    assert (done.returncode, checkout.asked) == (1, [])
    assert done.stderr == "Error: CORRAL_ACCELERATOR is tpu; it must be none, cuda, metal, vulkan or rocm\n"


def test_llama_cpp_is_compiled_again_if_a_card_is_added_or_removed(checkout: Checkout) -> None:
    checkout.uv(SUCCESS)
    assert "It is compiled for the CPU only: " in checkout.run().stderr
    added = [checkout.program(name) for name in ("nvcc", "nvidia-smi")]
    assert "It is compiled for CUDA too" in checkout.run().stderr
    assert (checkout.run().stderr, len(checkout.asked)) == ("", 2)
    for program in added:
        program.unlink()
    assert "It is compiled for the CPU only: " in checkout.run().stderr
    assert [CUDA in asked for asked in checkout.asked] == [False, True, False]


def test_a_failed_accelerator_build_suggests_building_without(checkout: Checkout) -> None:
    checkout.uv("echo 'nvcc fatal: unsupported' >&2; exit 2")
    *_, hint, last = checkout.run(CORRAL_ACCELERATOR="cuda").stderr.splitlines()
    assert hint == "CORRAL_ACCELERATOR=none compiles llama.cpp for the CPU only."
    assert last.startswith("Error: the environment could not be installed: nvcc fatal: unsupported")


def test_stopping_the_script_stops_the_compilers(checkout: Checkout) -> None:
    checkout.uv('sleep 600 & echo $! >"$0.child"; wait')
    variables = {"PATH": str(checkout.bin), "HOME": str(checkout.path)}
    with subprocess.Popen(["ops/bootstrap.sh"], cwd=checkout.path, env=variables, stderr=subprocess.DEVNULL) as script:
        child = checkout.bin / "uv.child"
        deadline = time.monotonic() + 10
        while not (child.exists() and child.read_text().strip()):
            assert time.monotonic() < deadline
        script.terminate()
        assert script.wait(timeout=10) == 130
    pid = int(child.read_text())
    while os.path.exists(f"/proc/{pid}") and _state(pid) != "Z":
        assert time.monotonic() < deadline


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"
