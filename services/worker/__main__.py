"""`python -m services.worker`: settings from the environment, SIGTERM drains, a second signal ends at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import uvloop

from services.protocol.connection import connect
from services.worker.config import Settings
from services.worker.loading import load
from services.worker.worker import Worker


async def serve(settings: Settings) -> int:
    redis = connect(settings.redis_url)
    worker = Worker(settings, redis, load)
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


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.exit(uvloop.run(serve(Settings())))


if __name__ == "__main__":
    main()
