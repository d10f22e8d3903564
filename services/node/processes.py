"""Runs workers as processes of this machine.

Each worker leads its own session, so that a Ctrl-C in the agent's terminal reaches only the agent, and so that workers outlive
an agent that crashes. `<folder>/<replica>.json` records the worker's process; the next agent adopts the processes that still
run. The file is first written without a pid, before the process starts. If the agent crashes in between, the next one finds the
process by its environment.

`_lock` guards the folder and the table of workers. It is not held while waiting for a worker to end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import psutil

from services.node import hardware
from services.node.drain import Drain
from services.node.hardware import Memory
from services.node.runtime import ENDED_KEPT_S, StartSpec, last_line, require_replica_id
from services.process.cpus import num_cpus
from services.protocol.errors import ModelLoadFailed, ModelRefused
from services.protocol.reports import UNKNOWN_EXIT, Device, ProcessReport

_LOG_LIMIT_BYTES = 10 * 1024**2
_LOG_KEPT_S = 7 * 24 * 3600

log = logging.getLogger(__name__)


class _Record(msgspec.Struct):
    """The contents of the state file. `pid` 0: about to be started. `created_at` is the process's creation time in seconds
    since the epoch; it distinguishes the worker from a later process with the same pid."""

    replica: str
    pid: int = 0
    created_at: float = 0.0


class _Worker:
    """A worker's process. `child` is None if it was adopted; its exit code is then unknown."""

    def __init__(self, record: _Record, child: subprocess.Popen[bytes] | None) -> None:
        self.replica = record.replica
        self.pid = record.pid
        self.ended_at: float | None = None
        self.stopping = False
        self._created_at = record.created_at
        self._child = child

    def exit_code(self) -> int | None:
        """None while it runs. If we stopped it, any code but 0 is reported as SIGTERM's."""
        code = self._child.poll() if self._child else _adopted_exit_code(self.pid, self._created_at)
        if code is not None and self.ended_at is None:
            self.ended_at = time.monotonic()
        return -signal.SIGTERM if code and self.stopping else code

    @property
    def has_ended(self) -> bool:
        return self.exit_code() is not None

    def terminate(self) -> None:
        self.stopping = not self.has_ended
        if self.stopping:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kills the worker and its process group."""
        if not self.has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


class ProcessRuntime:
    """Runs workers as processes. Adopts the workers of an earlier agent from `folder`.

    - `environment`: variables for every worker, besides its own settings.
    - `drain_s`: how long a worker that is stopped may take to finish its requests.
    - `command`: the worker's command line. `devices_command`: that of services.worker.accelerators.
    """

    def __init__(
        self,
        folder: Path,
        *,
        environment: Mapping[str, str],
        drain_s: float,
        command: Sequence[str] = (sys.executable, "-m", "services.worker"),
        devices_command: Sequence[str] = (sys.executable, "-m", "services.worker.accelerators"),
    ) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._drain_s = drain_s
        self._drain = Drain(drain_s)
        self._command = list(command)
        self._devices_command = list(devices_command)
        self._lock = threading.Lock()
        self._closed = False
        folder.mkdir(parents=True, exist_ok=True)
        self._workers = {record.replica: _Worker(record, None) for record in self._records()}
        self._forget_old_logs()

    def start(self, spec: StartSpec) -> None:
        require_replica_id(spec.replica)
        if spec.engine.image:
            raise ModelRefused(f"this node runs its workers as processes and cannot run the image {spec.engine.image}")
        with self._lock:
            if self._closed:
                raise ModelLoadFailed("this node's agent is stopping")
            running = self._workers.get(spec.replica)
            if running and running.exit_code() is None:
                return
            self._workers[spec.replica] = self._spawn(spec)

    def stop(self, replica: str) -> None:
        with self._lock:
            worker = self._workers.get(replica)
        if worker:
            self._end([worker])

    def devices(self) -> tuple[Device, ...] | None:
        return hardware.devices(self._devices_command, self._environment)

    def cpus(self) -> int:
        return num_cpus()

    def memory(self) -> Memory:
        return hardware.memory()

    def reports(self) -> tuple[ProcessReport, ...]:
        with self._lock:
            return tuple(self._report(worker) for worker in list(self._workers.values()) if not self._forgotten(worker))

    def running(self) -> frozenset[str]:
        with self._lock:
            workers = list(self._workers.values())
        return frozenset(worker.replica for worker in workers if worker.exit_code() is None)

    def replaced(self) -> bool:
        return False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            workers = list(self._workers.values())
        self._end(workers)

    def hurry(self) -> None:
        """Ends all draining now: `stop` and `close` kill the workers that they wait for."""
        self._drain.hurry()

    def _spawn(self, spec: StartSpec) -> _Worker:
        record = _Record(spec.replica)
        self._save(record)
        try:
            with self._open_log(spec.replica) as output:
                child = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**self._environment, **spec.environment(drain_s=self._drain_s)},
                    start_new_session=True,
                )
        except OSError as error:
            self._state_file(spec.replica).unlink(missing_ok=True)
            raise ModelLoadFailed(f"the worker cannot be started: {error}") from error
        record.pid = child.pid
        record.created_at = psutil.Process(child.pid).create_time()
        self._save(record)
        log.info("worker started: replica=%s pid=%d", spec.replica, child.pid)
        return _Worker(record, child)

    def _end(self, workers: Sequence[_Worker]) -> None:
        self._drain.end(workers)
        with self._lock:
            for worker in workers:
                self._forget(worker)

    def _report(self, worker: _Worker) -> ProcessReport:
        code = worker.exit_code()
        line = "" if code is None else _last_line_of(self._log_file(worker.replica))
        return ProcessReport(worker.replica, worker.pid, code, line)

    def _forgotten(self, worker: _Worker) -> bool:
        """Whether the worker ended longer than ENDED_KEPT_S ago; forgets it if so."""
        if worker.exit_code() is None or worker.ended_at is None or time.monotonic() - worker.ended_at < ENDED_KEPT_S:
            return False
        self._forget(worker)
        return True

    def _forget(self, worker: _Worker) -> None:
        if self._workers.get(worker.replica) is worker:
            del self._workers[worker.replica]
            self._state_file(worker.replica).unlink(missing_ok=True)

    def _records(self) -> Iterable[_Record]:
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=_Record)
            except msgspec.MsgspecError:
                log.warning("invalid worker state file removed: path=%s", path)
                path.unlink()
                continue
            if not record.pid:
                self._find(record)
            if not record.pid:
                path.unlink()
                continue
            log.info("worker adopted: replica=%s pid=%d", record.replica, record.pid)
            yield record

    def _find(self, record: _Record) -> None:
        """Fills in the process of a worker whose agent crashed while starting it."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("CORRAL_REPLICA") == record.replica and os.getsid(process.pid) == process.pid:
                    record.pid, record.created_at = process.pid, process.create_time()
                    self._save(record)
                    return

    def _save(self, record: _Record) -> None:
        path = self._state_file(record.replica)
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(record))
        os.replace(partial, path)

    def _state_file(self, replica: str) -> Path:
        return self._folder / f"{replica}.json"

    def _log_file(self, replica: str) -> Path:
        return self._folder / f"{replica}.log"

    def _open_log(self, replica: str) -> BinaryIO:
        path = self._log_file(replica)
        if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
            os.replace(path, path.with_suffix(".log.1"))
        return path.open("ab")

    def _forget_old_logs(self) -> None:
        for path in self._folder.glob("*.log*"):
            if path.name.split(".log")[0] not in self._workers and time.time() - path.stat().st_mtime > _LOG_KEPT_S:
                path.unlink(missing_ok=True)


def _adopted_exit_code(pid: int, created_at: float) -> int | None:
    """None while the process with this pid and creation time runs. Creation times may differ by two seconds, because the clock
    may have been set since."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created_at) < 2.0
        return None if same and process.status() != psutil.STATUS_ZOMBIE else UNKNOWN_EXIT
    except psutil.NoSuchProcess:
        return UNKNOWN_EXIT


def _last_line_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            return last_line(file.read())
    except OSError:
        return ""
