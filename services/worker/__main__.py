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
from services.worker.embedding.mode import EmbeddingMode
from services.worker.engine.embedder import Embedder, Pooling
from services.worker.engine.fake import CostModel, FakeRunner
from services.worker.engine.fake_embedder import FakeEmbedder
from services.worker.engine.llama import DEFAULT_CONTEXT_TOKENS, LlamaRunner, LlamaSettings
from services.worker.engine.llama_embedder import LlamaEmbedder
from services.worker.engine.runner import ModelRunner
from services.worker.generating import GeneratingMode
from services.worker.mode import Mode
from services.worker.worker import Worker


def load(settings: Settings) -> Mode:
    """By CORRAL_POOLING: a model that is pooled makes embeddings, or scores; any other generates."""
    if settings.pooling in ("", "none"):
        return GeneratingMode(load_runner(settings), settings)
    return EmbeddingMode(load_embedder(settings, Pooling(settings.pooling)))


def load_embedder(settings: Settings, pooling: Pooling) -> Embedder:
    if settings.runner == "fake":
        return FakeEmbedder(
            pooling=pooling,
            context_tokens=settings.context_tokens or DEFAULT_CONTEXT_TOKENS,
            batch_tokens=settings.batch_tokens,
            cost=CostModel(step_s=settings.fake_step_s, token_s=settings.fake_token_s),
        )
    llama = LlamaSettings(
        context_tokens=settings.context_tokens,
        batch_tokens=settings.batch_tokens,
        threads=settings.threads,
        gpu_layers=settings.gpu_layers,
    )
    return LlamaEmbedder(settings.model_path, llama, pooling=pooling)


def load_runner(settings: Settings) -> ModelRunner:
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
