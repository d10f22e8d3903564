"""Readiness checks for the platform's processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from services.cli.errors import OUTAGES

#: Timeout of one check. The supervisor repeats a failed check.
READINESS_TIMEOUT_S = 2.0


async def answers_ok(client: httpx.AsyncClient, url: str) -> bool:
    """Whether the URL answers with a 2xx status."""
    try:
        return (await client.get(url, timeout=READINESS_TIMEOUT_S)).is_success
    except OUTAGES:
        return False


async def valkey_answers(port: int, password: str) -> bool:
    """Whether Valkey accepts the password and has loaded its data."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(f"AUTH {password}\r\nPING\r\n".encode())
        async with asyncio.timeout(READINESS_TIMEOUT_S):
            return await reader.readline() == b"+OK\r\n" and await reader.readline() == b"+PONG\r\n"
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


def postgres_is_ready(data: Path, pid: int) -> bool:
    """Whether PostgreSQL is ready. Like `pg_ctl --wait`, reads the status line of PostgreSQL's pid file, if the file is this
    server's."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
