"""How a part is asked whether it is ready."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

#: Of one question; a part that does not answer is asked again.
TIMEOUT_S = 2.0


async def answers_ok(client: httpx.AsyncClient, url: str) -> bool:
    """HTTP 200."""
    try:
        return (await client.get(url, timeout=TIMEOUT_S)).is_success
    except httpx.HTTPError:
        return False


async def valkey_answers(port: int, password: str) -> bool:
    """Accepts the password and has loaded its data."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(f"AUTH {password}\r\nPING\r\n".encode())
        async with asyncio.timeout(TIMEOUT_S):
            return await reader.readline() == b"+OK\r\n" and await reader.readline() == b"+PONG\r\n"
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


def postgres_is_ready(data: Path, pid: int) -> bool:
    """What `pg_ctl --wait` looks at: the last line of PostgreSQL's own pid file, where that is this server's."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
