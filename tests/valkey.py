"""A Valkey with full memory or a full disk."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.cli.embedded.valkey import program
from services.protocol.connection import connect
from tests.conditions import eventually
from tests.conftest import free_port


@asynccontextmanager
async def full_memory(redis: Redis) -> AsyncIterator[None]:
    """Redis uses more memory than its limit."""
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", used // 2)
    try:
        await redis.delete(*await redis.keys("*:room") or ["none"])  # the queue's last figure of the free memory
        yield
    finally:
        await redis.config_set("maxmemory", 0)


@dataclass
class DiskValkey:
    """A Valkey with an append-only file."""

    url: str
    pid: int

    @asynccontextmanager
    async def full_disk(self) -> AsyncIterator[None]:
        """The append-only file cannot grow, and Valkey has noticed. Afterwards it can be written again."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (1, hard))
        try:
            await eventually(lambda: _refuses(self.url), timeout_s=20)
            yield
        finally:
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (hard, hard))
        await eventually(lambda: _accepts(self.url), timeout_s=20)


@asynccontextmanager
async def disk_valkey(folder: Path) -> AsyncIterator[DiskValkey]:
    port = free_port()
    settings = {"port": port, "bind": "127.0.0.1", "dir": folder, "appendonly": "yes", "save": "''"}
    arguments = " ".join(f"--{name} {value}" for name, value in settings.items())
    # Without the trap the limit's signal would end the process, but a full disk only fails the write.
    process = await asyncio.create_subprocess_shell(
        f"trap '' XFSZ; exec {program()} {arguments}", stdout=asyncio.subprocess.DEVNULL
    )
    url = f"redis://127.0.0.1:{port}/0"
    try:
        await eventually(lambda: _answers(url), timeout_s=20)
        yield DiskValkey(url, process.pid)
    finally:
        process.kill()
        await process.wait()


async def _refuses(url: str) -> bool:
    async with connect(url) as redis:
        try:
            await redis.set("written", b"")
        except ResponseError:
            return True
    return False


async def _accepts(url: str) -> bool:
    return not await _refuses(url)


async def _answers(url: str) -> bool:
    async with connect(url) as redis:
        try:
            return bool(await redis.ping())
        except RedisError:
            return False
