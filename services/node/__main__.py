"""`python -m services.node`: the agent of this machine.

Start: the store's lock, so that a second agent fails before it does anything; the workers that still run; the reports, so
that the cluster knows the node; then jobs.

Stop (SIGTERM, SIGINT): no more jobs, and pulls go back to the queue; workers drain, while the reports go on, as a worker
without a node would stop itself; the report is taken back; the lock is released. A second signal kills workers that still
drain. A crash leaves the workers for the next agent.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from types import FrameType

from pydantic import ValidationError

from services.node.agent import Agent
from services.node.config import Settings, pip_environment, worker_environment
from services.node.heartbeat import Heartbeat
from services.node.metrics import Metrics
from services.node.processes import ProcessRuntime
from services.node.store import Store
from services.node.tasks import JobConsumer
from services.node.uplink import Uplink
from services.protocol import logs
from services.protocol.errors import Conflict
from services.protocol.jobs import JobEvents
from services.protocol.telemetry import TelemetryRefused, telemetry

log = logging.getLogger("services.node")


def main() -> int:
    try:
        settings = Settings()
        store = Store(settings.store)
        runtime = _runtime(settings)
    except ValidationError as error:
        first = error.errors()[0]
        print(f"corral node: CORRAL_{str(first['loc'][0]).upper()}: {first['msg']}", file=sys.stderr)  # noqa: T201 the log is not set up
        return 2
    except (Conflict, OSError) as error:
        print(f"corral node: {error}", file=sys.stderr)  # noqa: T201 likewise
        return 1
    _log(settings)
    metrics = Metrics()
    try:
        with telemetry("node", settings, metrics.registry, redis_url=settings.redis_url) as opened:
            return run(settings, store, runtime, metrics, metrics_address=opened.address)
    except TelemetryRefused as error:
        print(f"corral node: {error}", file=sys.stderr)  # noqa: T201 it is no line of the log but why there is none
        return 1
    finally:
        store.close()


def _log(settings: Settings) -> None:
    logs.configure("node", settings.log_format, level=settings.log_level)
    for chatty in ("celery", "kombu"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _runtime(settings: Settings) -> ProcessRuntime:
    return ProcessRuntime(
        settings.state / "workers",
        environment={
            **worker_environment(),
            "CORRAL_REDIS_URL": settings.redis_url,
            "CORRAL_NODE": settings.node,
            "CORRAL_RUNNER": settings.runner,
            "CORRAL_METRICS_PORT": "auto" if settings.metrics_port else "0",
        },
        drain_s=settings.drain_s,
    )


def run(settings: Settings, store: Store, runtime: ProcessRuntime, metrics: Metrics, *, metrics_address: str) -> int:
    """The exit code: 1 where the agent cannot go on; then its workers are left for the next one."""
    stop = _stop_signal(runtime)
    uplink = Uplink(settings.redis_url)
    events = JobEvents(uplink.redis)
    agent = Agent(
        settings.node,
        store=store,
        runtime=runtime,
        publish=lambda event: uplink.call(events.publish, event),
        pip_environment=pip_environment(),
        metrics=metrics,
    )
    metrics.show(store, runtime, agent.jobs)
    heartbeat = Heartbeat(
        settings.node, store=store, runtime=runtime, jobs=agent.jobs, uplink=uplink, metrics_address=metrics_address
    )
    jobs = JobConsumer(agent, redis_url=settings.redis_url, node=settings.node, threads=settings.job_threads)
    heartbeat.start()
    jobs.start()
    log.info("node %s serves %s", settings.node, store.root)
    while not stop.wait(1.0):
        if not jobs.running:
            log.error("the job worker ended by itself")
            return 1
    agent.stop()
    runtime.close()
    jobs.stop()
    heartbeat.stop()
    uplink.close()
    return 0


def _stop_signal(runtime: ProcessRuntime) -> threading.Event:
    """Set by the first SIGTERM or SIGINT; the second one hurries the runtime."""
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            runtime.hurry()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return stop


if __name__ == "__main__":
    sys.exit(main())
