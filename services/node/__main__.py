"""`python -m services.node`: the agent of this machine.

Start: takes the store's lock, so that a second agent fails before it does anything; adopts workers that still run; starts to
report; then takes jobs.

Stop (SIGTERM, SIGINT): takes no further jobs, and pulls go back to the queue; drains the workers while it still reports, since
a worker whose node is gone stops itself; withdraws its report; releases the lock. A second signal kills workers that are still
draining. If another agent replaces this one (`docker compose up` has created a container from a new image), the workers keep
running, as after a crash, and the next agent adopts them.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from contextlib import ExitStack, closing
from types import FrameType

from pydantic import ValidationError
from pydantic_settings import SettingsError

from services.node.agent import Agent
from services.node.cancellations import watch_cancellations
from services.node.config import Settings, container_environment, pip_environment, worker_environment, worker_metrics
from services.node.containers.runtime import ContainerRuntime
from services.node.containers.template import Template
from services.node.downloads.addresses import AllowedHosts
from services.node.downloads.download import Patience
from services.node.downloads.downloads import Downloads
from services.node.downloads.rate import RateLimit
from services.node.downloads.web import STALL_S, Web
from services.node.heartbeat import Heartbeat
from services.node.metrics import Metrics
from services.node.processes import ProcessRuntime
from services.node.runtime import Runtime
from services.node.sources import Sources
from services.node.store import Store
from services.node.tasks import JobConsumer
from services.node.uplink import Uplink
from services.process.loops import vital
from services.protocol.errors import CorralError
from services.protocol.jobs import JobCancellations, JobEvents
from services.telemetry import logs
from services.telemetry.telemetry import TelemetryStartFailed, telemetry

log = logging.getLogger("services.node")


def main() -> int:
    with ExitStack() as opened:
        try:
            settings = Settings()
            _log(settings)
            store = opened.enter_context(closing(Store(settings.store)))
            metrics = Metrics()
            seen = opened.enter_context(telemetry("node", settings, metrics.registry, redis_url=settings.redis_url))
            runtime = _runtime(settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = f"CORRAL_{str(first['loc'][0]).upper()}"
            print(f"corral node: {name}: {first['msg']}", file=sys.stderr)  # noqa: T201 - for the terminal, not the log
            return 2
        except SettingsError as error:
            print(f"corral node: {error.__cause__ or error}", file=sys.stderr)  # noqa: T201 - likewise
            return 2
        except (CorralError, OSError, TelemetryStartFailed) as error:
            print(f"corral node: {error}", file=sys.stderr)  # noqa: T201 - likewise
            return 1
        return run(settings, store, runtime, metrics, metrics_address=seen.address)


def _log(settings: Settings) -> None:
    logs.configure("node", settings.log_format, level=settings.log_level)
    for name in ("celery", "kombu"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _runtime(settings: Settings) -> Runtime:
    own_variables = {"CORRAL_REDIS_URL": settings.redis_url, "CORRAL_NODE": settings.node, "CORRAL_RUNNER": settings.runner}
    own_variables |= worker_metrics(settings)
    if settings.runtime == "processes":
        environment = {**worker_environment(), **own_variables}
        return ProcessRuntime(settings.state / "workers", environment=environment, drain_s=settings.drain_s)
    template = Template(
        node=settings.node,
        network=settings.worker_network,
        store=settings.store,
        volume=settings.store_volume or str(settings.store),
        environment={**container_environment(), **own_variables},
        drain_s=settings.drain_s,
        gpus=settings.gpus,
    )
    backend = None if settings.backend == "auto" else settings.backend
    return ContainerRuntime(template, image=settings.worker_image, backend=backend)


def run(settings: Settings, store: Store, runtime: Runtime, metrics: Metrics, *, metrics_address: str) -> int:
    """Runs the agent until a signal; returns the exit code. 1: the job consumer ended by itself; the workers keep running."""
    stop = _stop_signal(runtime)
    uplink = Uplink(settings.redis_url)
    events = JobEvents(uplink.redis)
    agent = Agent(
        settings.node,
        store=store,
        adapters=settings.adapters,
        runtime=runtime,
        publish=lambda event: uplink.call(events.publish, event),
        sources=_sources(settings),
        metrics=metrics,
    )
    metrics.add_collectors(store, runtime, agent.jobs)
    heartbeat = Heartbeat(
        settings.node,
        store=store,
        runtime=runtime,
        jobs=agent.jobs,
        uplink=uplink,
        metrics_address=metrics_address,
        pulse=settings.state / "pulse",
    )
    jobs = JobConsumer(agent, redis_url=settings.redis_url, node=settings.node, threads=settings.job_threads)
    heartbeat.start()
    cancellations = uplink.spawn(vital("cancellations", watch_cancellations(agent, JobCancellations(uplink.redis))))
    jobs.start()
    log.info("agent started: node=%s store=%s", settings.node, store.root)
    while not stop.wait(1.0):
        if not jobs.running:
            log.error("job consumer ended by itself: the agent exits")
            return 1
    agent.stop()
    replaced = runtime.replaced()
    if replaced:
        log.info("another agent takes over: the workers keep running")
    else:
        runtime.close()
    jobs.stop()
    cancellations.cancel()
    heartbeat.stop(remove=not replaced)
    uplink.close()
    return 0


def _sources(settings: Settings) -> Sources:
    downloads = Downloads(
        Web(AllowedHosts.parse(settings.source_hosts), stall_s=STALL_S), RateLimit(settings.pull_bytes_per_s), Patience()
    )
    return Sources(downloads, pip_environment=pip_environment(), import_paths=settings.import_folders)


def _stop_signal(runtime: Runtime) -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets. A second signal calls `runtime.hurry`."""
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
