"""The servers that are compared, each started for one model, a number of slots and a context per slot."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from comparison.client import Client
from comparison.models import Model
from comparison.processes import child, free_port

CORRAL = "corral"
LLAMA_SERVER = "llama-server"
PACKAGED = "llama_cpp.server"

START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Load:
    """What a server is started for. `context_tokens` is the context of one slot. With `threads` 0, Corral chooses the number."""

    model: Model
    slots: int
    context_tokens: int
    threads: int


@dataclass(frozen=True)
class Server:
    """A running server; `pid` is the root of its processes, and `client` uses the model it was started for."""

    name: str
    pid: int
    client: Client
    port: int


class DidNotStart(Exception):
    """The text is the end of its log."""


@contextlib.contextmanager
def corral(
    load: Load, folder: Path, *, beside: Sequence[Model] = (), checkout: Path | None = None, name: str = CORRAL
) -> Iterator[Server]:
    """The whole platform, as `corral up` starts it, without data of an earlier run. It also has the models in `beside`.
    `checkout` is the folder of another Corral."""
    port = free_port()
    home = folder / f"corral-{port}"
    environment = {
        "CORRAL_HOME": str(home),
        "CORRAL_HOST": f"127.0.0.1:{port}",
        "CORRAL_SLOTS": str(load.slots),
        "CORRAL_CONTEXT_TOKENS": str(load.context_tokens),
        "CORRAL_THREADS": str(load.threads),
        "CORRAL_KEEP_ALIVE": "-1",
    }
    log = folder / f"{name}.log"
    cli = [str(checkout / ".venv/bin/corral")] if checkout else [sys.executable, "-m", "services.cli"]
    up = [*cli, "up", "--no-demo"]
    with _removed(home), child(up, log=log, environment=environment, stop=signal.SIGINT, grace_s=60) as process:
        _wait(process, log, lambda: "ready at" in log.read_text())
        for model in (load.model, *beside):
            _pull(cli, model, {**os.environ, **environment})
        yield Server(name, process.pid, Client(port, load.model.name), port)


@contextlib.contextmanager
def llama_server(load: Load, folder: Path) -> Iterator[Server]:
    port = free_port()
    log = folder / f"llama-server-{port}.log"
    arguments = {
        "--model": load.model.path,
        "--port": port,
        "--slots": load.slots,
        "--context-tokens": load.context_tokens,
        "--threads": load.threads,
    }
    script = Path(__file__).with_name("llama_server.py")
    command = [sys.executable, str(script), *(str(word) for pair in arguments.items() for word in pair)]
    with child(command, log=log) as process:
        _wait(process, log, lambda: _answers(f"http://127.0.0.1:{port}/health"))
        yield Server(LLAMA_SERVER, process.pid, Client(port, load.model.name), port)


@contextlib.contextmanager
def packaged(load: Load, folder: Path) -> Iterator[Server]:
    """The server of llama-cpp-python. It answers one request after the other; by default a new request would interrupt the
    running one."""
    port = free_port()
    log = folder / "llama_cpp.server.log"
    arguments = {
        "--model": load.model.path,
        "--port": port,
        "--n_ctx": load.context_tokens,
        "--n_threads": load.threads,
        "--n_threads_batch": load.threads,
        "--interrupt_requests": False,
    }
    command = [sys.executable, "-m", "llama_cpp.server", *(str(word) for pair in arguments.items() for word in pair)]
    with child(command, log=log) as process:
        _wait(process, log, lambda: _answers(f"http://127.0.0.1:{port}/v1/models"))
        yield Server(PACKAGED, process.pid, Client(port, load.model.name), port)


@contextlib.contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Removes the folder at the end of the block."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pull(cli: Sequence[str], model: Model, environment: Mapping[str, str]) -> None:
    """From the file, which takes seconds."""
    command = [*cli, "pull", str(model.path), "--as", model.name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    if done.returncode:
        raise DidNotStart(f"corral pull {model.path}: {done.stderr.strip()[-500:]}")


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, trust_env=False).is_success
    return False


def _wait(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return
        time.sleep(0.1)
    ended = "ended" if process.poll() is not None else "was not ready in time"
    raise DidNotStart(f"{log.stem} {ended}: {log.read_text(errors='replace').strip()[-1000:]}")
