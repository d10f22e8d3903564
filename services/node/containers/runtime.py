"""Runs workers as containers beside the agent.

    start   check that image, network and volume exist → create → add to the table → start
    end     the engine reports it → inspect exit code, memory, last line → report for ENDED_KEPT_S → remove

A container is named after its node and replica, so Docker prevents two containers of one replica. Labels mark this node's
containers: the next agent adopts those that were started and removes the others. Images are never pulled; an admin puts them on
the machine.

`_lock` guards the table of workers and is never held during a call of the engine. One thread follows the engine's events. Every
EVENTS_TIMEOUT_S, and when the engine answers again after an outage, it compares the table with the containers that exist.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from services.node import hardware
from services.node.containers.accelerators import Machine, find_machine, image_for, share_of
from services.node.containers.engine import Container, Engine, Event, Listed
from services.node.containers.template import Backend, Template
from services.node.drain import KILL_GRACE_S, Drain
from services.node.hardware import Memory
from services.node.runtime import ENDED_KEPT_S, StartSpec, last_line, require_replica_id
from services.process.loops import vital_thread
from services.protocol.errors import CorralError, InsufficientMemory, ModelLoadFailed, ModelRefused
from services.protocol.reports import UNKNOWN_EXIT, Device, ProcessReport
from services.weights.memory import gib

#: How often the stream of events is restarted and the table is compared with the containers that exist.
EVENTS_TIMEOUT_S = 30

_EVENTS_RETRY_INTERVAL_S = 0.5
_OVER = ("exited", "dead", "removing")

log = logging.getLogger(__name__)


class _End(NamedTuple):
    at: float
    report: ProcessReport


@dataclass
class _Worker:
    """A worker's container. `ended` is set when it has ended; `stopping`: the agent is stopping it."""

    engine: Engine
    replica: str
    container: str
    pid: int = 0
    stopping: bool = False
    out_of_memory: bool = False
    ended: _End | None = None

    @property
    def report(self) -> ProcessReport:
        return self.ended.report if self.ended else ProcessReport(self.replica, self.pid, None, "")

    @property
    def has_ended(self) -> bool:
        return self.ended is not None

    def terminate(self) -> None:
        self.stopping = True
        self.engine.signal(self.container, "SIGTERM")

    def kill(self) -> None:
        self.engine.signal(self.container, "SIGKILL")


class ContainerRuntime:
    """Runs workers as containers. Adopts those of an earlier agent of the same node. Raises Unavailable if the engine does not
    answer.

    - `image`: the workers' image; `{backend}` in it is replaced.
    - `backend`: None for the fastest one that finds an accelerator.
    """

    def __init__(self, template: Template, *, image: str, backend: Backend | None = None) -> None:
        self._template = template
        self._image = image
        self._backend = backend
        self._lock = threading.Lock()
        self._finding = threading.Lock()
        self._machine: Machine | None = None
        self._closed = False
        self._drain = Drain(template.drain_s)
        self._over = threading.Event()
        self._workers: dict[str, _Worker] = {}
        self._starting: set[str] = set()
        self._engine = Engine()
        self._compare()
        self._following = threading.Thread(
            target=vital_thread, args=("docker-events", self._follow), name="docker-events", daemon=True
        )
        self._following.start()

    def start(self, spec: StartSpec) -> None:
        require_replica_id(spec.replica)
        with self._lock:
            self._require_open()
            worker = self._workers.get(spec.replica)
            if spec.replica in self._starting or (worker and not worker.ended):
                return
            self._starting.add(spec.replica)
        try:
            self._begin(spec)
        finally:
            with self._lock:
                self._starting.remove(spec.replica)

    def stop(self, replica: str) -> None:
        with self._lock:
            worker = self._workers.get(replica)
        if worker:
            self._end([worker])

    def devices(self) -> tuple[Device, ...] | None:
        try:
            return self._here().devices
        except CorralError as error:
            log.warning("accelerators unknown: error=%r", error.message)
            return None

    def cpus(self) -> int:
        return self._engine.cpus

    def memory(self) -> Memory:
        """The whole machine's memory: workers run beside the agent, not within its limits."""
        total = self._engine.memory_bytes
        return Memory(total, min(total, hardware.machine_memory_available()))

    def reports(self) -> tuple[ProcessReport, ...]:
        with self._lock:
            return tuple(worker.report for worker in self._workers.values())

    def running(self) -> frozenset[str]:
        with self._lock:
            return frozenset(worker.replica for worker in self._workers.values() if not worker.ended)

    def replaced(self) -> bool:
        try:
            return self._engine.replaces_us()
        except CorralError as error:
            log.warning("cannot find out whether another agent takes over: error=%r", error.message)
            return False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            workers = list(self._workers.values())
        try:
            self._end(workers)
        except CorralError as error:
            log.warning("workers not stopped, the next agent adopts them: error=%r", error.message)
        self._over.set()
        self._engine.close()
        self._following.join(timeout=KILL_GRACE_S)

    def hurry(self) -> None:
        self._drain.hurry()

    def _begin(self, spec: StartSpec) -> None:
        self._require_adapters(spec)
        machine = self._here()
        image = image_for(machine.backend, spec.engine.image or self._image)
        self._engine.require_image(image)
        self._engine.require_network(self._template.network)
        if self._template.named_volume:
            self._engine.require_volume(self._template.volume)
        name = self._template.name(spec.replica)
        if not self._take_over(name):
            share = share_of(spec.engine, len(machine.devices))
            adapted = msgspec.structs.replace(spec, engine=share.engine)
            body = self._template.worker(adapted, image, machine.backend, share.devices, cpus=self._engine.cpus)
            self._run(_Worker(self._engine, spec.replica, self._engine.create(name, body)))
            log.info("worker started: replica=%s container=%s image=%s", spec.replica, name, image)

    def _take_over(self, name: str) -> bool:
        """Adopts a running container of that name, which is missing in the table; true if there is one. Removes one that has
        ended."""
        left = self._engine.find(name)
        if left and left.runs:
            self._adopt(left)
            return True
        if left:
            self._engine.remove(left.id)
        return False

    def _run(self, worker: _Worker) -> None:
        """Starts the container. The worker is added to the table first, because it may end as soon as it starts."""
        try:
            with self._lock:
                self._require_open()
                self._workers[worker.replica] = worker
            self._engine.start(worker.container)
            found = self._engine.find(worker.container)
            worker.pid = found.pid if found else 0
        except CorralError:
            self._forget(worker)
            self._engine.remove(worker.container)
            raise

    def _require_open(self) -> None:
        if self._closed:
            raise ModelLoadFailed("this node's agent is stopping")

    def _require_adapters(self, spec: StartSpec) -> None:
        for file, _ in spec.engine.lora:
            if self._template.store not in Path(file).parents:
                raise ModelRefused(
                    f"the LoRA adapter {file} is not in the node's store, the only folder that workers in containers can read"
                )

    def _here(self) -> Machine:
        """The machine, found at the first call that succeeds and kept while the agent runs."""
        with self._finding:
            if self._machine is None:
                self._machine = find_machine(self._engine, self._template, self._image, self._backend)
                log.info("backend chosen: backend=%s accelerators=%d", self._machine.backend, len(self._machine.devices))
            return self._machine

    def _end(self, workers: Sequence[_Worker]) -> None:
        self._drain.end(workers)
        for worker in workers:
            self._engine.remove(worker.container)
            self._forget(worker)

    def _forget(self, worker: _Worker) -> None:
        with self._lock:
            if self._workers.get(worker.replica) is worker:
                del self._workers[worker.replica]

    def _follow(self) -> None:
        """Follows the engine's events until the runtime is closed."""
        away = False
        while not self._over.is_set():
            since = int(time.time())
            try:
                self._compare()
                if away:
                    log.info("Docker engine answers again")
                away = False
                for event in self._engine.events(self._template.node, since=since, until=since + EVENTS_TIMEOUT_S):
                    self._note(event)
            except CorralError as error:
                if not away and not self._over.is_set():
                    log.warning("Docker events not followed: error=%r", error.message)
                away = True
                self._over.wait(_EVENTS_RETRY_INTERVAL_S)

    def _note(self, event: Event) -> None:
        with self._lock:
            worker = next((worker for worker in self._workers.values() if worker.container == event.container), None)
            if worker and event.exit_code is None:
                worker.out_of_memory = True
        if worker and event.exit_code is not None:
            self._ended(worker, event.exit_code)

    def _compare(self) -> None:
        """Compares the table with the containers that exist, since events may have been missed. Removes ended ones after a
        while."""
        with self._lock:
            known = {worker.container: worker for worker in self._workers.values()}
            starting = set(self._starting)
        there = self._engine.workers(self._template.node)
        for container, worker in known.items():
            if not worker.ended and (container not in there or there[container].status in _OVER):
                self._ended(worker, UNKNOWN_EXIT)
        for container, listed in there.items():
            if container not in known and listed.replica not in starting:
                self._find(container, listed)
        for worker in known.values():
            if worker.ended and time.monotonic() - worker.ended.at > ENDED_KEPT_S:
                self._engine.remove(worker.container)
                self._forget(worker)

    def _find(self, container: str, listed: Listed) -> None:
        """Adopts a container that is missing in the table, or removes it if it was never started. Skips replicas that are being
        started now."""
        with self._lock:
            if listed.replica in self._starting or listed.replica in self._workers:
                return
        found = self._engine.find(container)
        if found and listed.status == "created":
            log.info("container that was never started removed: replica=%s", listed.replica)
            self._engine.remove(container)
        elif found:
            self._adopt(found)

    def _adopt(self, found: Container) -> None:
        worker = _Worker(self._engine, found.replica, found.id, found.pid)
        with self._lock:
            self._workers[found.replica] = worker
        log.info("worker adopted: replica=%s container=%s", found.replica, found.id[:12])
        if not found.runs:
            self._ended(worker, found.exit_code)

    def _ended(self, worker: _Worker, exit_code: int) -> None:
        """Sets `ended` after the post-mortem, so that a report of an ended worker always has its exit code and reason."""
        if worker.ended:
            return
        report = ProcessReport(worker.replica, worker.pid, -signal.SIGTERM if worker.stopping else exit_code, "")
        if not worker.stopping:
            try:
                report = self._post_mortem(worker, exit_code)
            except CorralError as error:
                log.warning("cannot find out why a worker ended: replica=%s error=%r", worker.replica, error.message)
        with self._lock:
            worker.ended = _End(time.monotonic(), report)

    def _post_mortem(self, worker: _Worker, exit_code: int) -> ProcessReport:
        found = self._engine.find(worker.container)
        if found is None:
            return ProcessReport(worker.replica, worker.pid, exit_code, "", reason="its container was removed")
        tail = self._engine.tail(worker.container)
        report = ProcessReport(worker.replica, worker.pid, found.exit_code, last_line(tail))
        if found.exit_code and (found.out_of_memory or worker.out_of_memory):
            limit = f"limit {gib(found.memory_limit)}" if found.memory_limit else "the machine has no more"
            reason = f"ran out of memory: {limit}"
            report = msgspec.structs.replace(report, reason=reason, error_code=InsufficientMemory.code)
        log.warning(
            "worker ended: replica=%s exit_code=%d reason=%r last_lines:\n%s",
            *(worker.replica, found.exit_code, report.reason),
            tail.decode(errors="replace").rstrip(),
        )
        return report
