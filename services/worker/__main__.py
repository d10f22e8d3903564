"""`python -m services.worker`: settings from the environment. SIGTERM drains the worker; a second signal ends it at once."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys

import uvloop

from services.protocol.connection import connect
from services.telemetry import logs
from services.telemetry.telemetry import Telemetry, TelemetryStartFailed, telemetry
from services.worker.config import Settings
from services.worker.loading import load
from services.worker.metrics import Metrics
from services.worker.worker import Worker


async def serve(settings: Settings, metrics: Metrics, opened: Telemetry) -> int:
    redis = connect(settings.redis_url)
    worker = Worker(settings, redis, load, metrics=metrics, telemetry=opened)
    loop = asyncio.get_running_loop()

    def terminate() -> None:
        worker.drain()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, os._exit, 1)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, terminate)
    try:
        return await worker.run()
    finally:
        await redis.aclose()


def die_at_once() -> None:
    """Makes a crash end the process without a core dump and without ggml's debugger. While these run, the worker looks cut off
    instead of crashed, and the request that crashed it is tried elsewhere."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    os.putenv("GGML_NO_BACKTRACE", "1")


def main() -> None:
    die_at_once()
    settings = Settings()
    logs.configure("worker", settings.log_format)
    metrics = Metrics(slots=settings.engine.slots)
    try:
        with telemetry("worker", settings, metrics.registry, redis_url=settings.redis_url, traced=True) as opened:
            code = uvloop.run(serve(settings, metrics, opened))
    except TelemetryStartFailed as error:
        sys.exit(f"corral worker: {error}")
    sys.exit(code)


if __name__ == "__main__":
    main()
