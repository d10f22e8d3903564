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
from services.worker.engine.fake import CostModel, FakeRunner
from services.worker.engine.llama import DEFAULT_CONTEXT_TOKENS, LlamaRunner, LlamaSettings
from services.worker.engine.runner import ModelRunner
from services.worker.worker import Worker


def load(settings: Settings) -> ModelRunner:
    if settings.runner == "fake":
        return FakeRunner(
            num_slots=settings.slots,
            context_tokens=settings.context_tokens or DEFAULT_CONTEXT_TOKENS,
            cost=CostModel(step_s=settings.fake_step_s, token_s=settings.fake_token_s),
        )
    return LlamaRunner(
        settings.model_path,
        LlamaSettings(
            num_slots=settings.slots,
            context_tokens=settings.context_tokens,
            batch_tokens=settings.batch_tokens,
            threads=settings.threads,
            gpu_layers=settings.gpu_layers,
            kv_unified=settings.kv_unified,
        ),
    )


async def serve(settings: Settings) -> int:
    redis = connect(settings.redis_url)
    worker = Worker(settings, redis, lambda: load(settings))
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
