"""The supervisor with real processes: crashes, restarts, order of stopping, leftovers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.cli.embedded import processes
from services.cli.embedded.home import Home
from services.cli.embedded.supervisor import LOG_LIMIT_BYTES, STOP_ORDER, Supervisor
from services.cli.errors import ProcessStartFailed
from tests.cli.embedded.conftest import MakeProcess
from tests.conditions import eventually, eventually_sync

#: After READY it waits for a signal, and writes its name to `order` when it ends.
PATIENT = """
def end(*_):
    with open(home / 'order', 'a') as file: file.write(NAME + '\\n')
    sys.exit()
signal.signal(signal.SIGTERM, end)
READY
signal.pause()
"""

STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
READY
while True: signal.pause()
"""


def patient(name: str) -> str:
    return PATIENT.replace("NAME", repr(name))


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest_asyncio.fixture
async def supervisor(home: Home, lines: list[str]) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(home, lines.append, start_timeout_s=10)
    yield supervisor
    await supervisor.stop()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)


def parts(home: Home) -> dict[str, dict[str, int | None]]:
    found: dict[str, dict[str, int | None]] = json.loads(home.processes_file.read_text())
    return found


async def test_parts_are_listed_while_they_run(home: Home, supervisor: Supervisor, make_process: MakeProcess) -> None:
    await supervisor.start(make_process("gateway", patient("gateway")))
    pid = parts(home)["gateway"]["pid"]
    assert pid is not None
    assert pid in processes.marked(home.path)
    assert home.processes_file.stat().st_mode & 0o777 == 0o600
    await supervisor.stop()
    assert not home.processes_file.exists()
    assert processes.marked(home.path) == set()


async def test_a_crash_is_reported_in_one_line_and_the_part_restarts(
    home: Home, supervisor: Supervisor, make_process: MakeProcess, lines: list[str]
) -> None:
    await supervisor.start(make_process("gateway", patient("gateway")))
    await supervisor.start(make_process("registry", patient("registry")))
    before = parts(home)
    pid = before["registry"]["pid"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: "registry is ready again" in lines)
    assert lines == [
        f"registry was killed by SIGKILL; restarting it in 0.5 s (log: {home.logs}/registry.log)",
        "registry is ready again",
    ]
    assert parts(home)["registry"] != before["registry"]
    assert parts(home)["gateway"] == before["gateway"]


async def test_a_part_that_exits_before_it_is_ready_ends_the_start(
    home: Home, supervisor: Supervisor, make_process: MakeProcess, lines: list[str]
) -> None:
    with pytest.raises(ProcessStartFailed) as failed:
        await supervisor.start(make_process("registry", "print('the port is taken', flush=True); sys.exit(3)"))
    assert str(failed.value) == f"registry ended with exit code 3: the port is taken (log: {home.logs}/registry.log)"
    assert len(lines) == 2


async def test_a_part_that_is_not_ready_in_time_ends_the_start(home: Home, lines: list[str], make_process: MakeProcess) -> None:
    supervisor = Supervisor(home, lines.append, start_timeout_s=0.5)
    with pytest.raises(ProcessStartFailed, match="^node agent was not ready after 0 s"):
        await supervisor.start(make_process("node agent", "signal.pause()"))
    await supervisor.stop()
    assert processes.marked(home.path) == set()


async def test_parts_are_stopped_in_order(home: Home, supervisor: Supervisor, make_process: MakeProcess) -> None:
    for name in reversed(STOP_ORDER):
        await supervisor.start(make_process(name, patient(name)))
    await supervisor.stop()
    assert (home.path / "order").read_text().splitlines() == list(STOP_ORDER)


async def test_a_part_that_does_not_end_is_killed(
    supervisor: Supervisor, make_process: MakeProcess, lines: list[str], home: Home
) -> None:
    await supervisor.start(make_process("gateway", STUBBORN, grace_s=0.2))
    await supervisor.stop()
    assert lines == ["gateway did not exit in time; killing it"]
    assert processes.marked(home.path) == set()


async def test_hurry_stops_without_waiting(supervisor: Supervisor, make_process: MakeProcess, home: Home) -> None:
    await supervisor.start(make_process("gateway", STUBBORN, grace_s=60))
    await supervisor.start(make_process("registry", STUBBORN, grace_s=60))
    started = time.monotonic()
    stopping = asyncio.create_task(supervisor.stop())
    asyncio.get_running_loop().call_later(0.1, supervisor.hurry)
    await stopping
    assert time.monotonic() - started < 5
    assert processes.marked(home.path) == set()


async def test_a_crashed_part_is_not_restarted_while_stopping(
    supervisor: Supervisor, make_process: MakeProcess, home: Home
) -> None:
    await supervisor.start(make_process("gateway", patient("gateway")))
    pid = parts(home)["gateway"]["pid"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await supervisor.stop()
    assert processes.marked(home.path) == set()


async def test_child_processes_of_a_part_are_ended_too(
    supervisor: Supervisor, make_process: MakeProcess, lines: list[str], home: Home
) -> None:
    """A node agent crashed and left a worker."""
    code = (
        "subprocess.Popen([sys.executable, '-c', 'import signal, sys; signal.signal(15, lambda *_: sys.exit()); signal.pause()'],"
        " start_new_session=True)\n" + patient("node agent")
    )
    await supervisor.start(make_process("node agent", code))
    pid = parts(home)["node agent"]["pid"]
    assert pid is not None
    worker = next(iter(processes.marked(home.path) - {pid}))
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: "node agent is ready again" in lines)
    assert worker in processes.marked(home.path), "it goes on while its agent is restarted"
    await supervisor.stop()
    assert "ending leftover processes" in lines[-1]
    assert processes.marked(home.path) == set()


async def test_adopted_children_are_reaped(supervisor: Supervisor, make_process: MakeProcess, home: Home) -> None:
    code = (
        "READY\n"
        "orphan = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(0.2)'], start_new_session=True)\n"
        "(home / 'orphan').write_text(str(orphan.pid))\n"
        "os.kill(os.getpid(), 9)"
    )
    await supervisor.start(make_process("node agent", code))
    orphan = int(await eventually(lambda: (home.path / "orphan").exists() and (home.path / "orphan").read_text()))
    await eventually(lambda: not Path(f"/proc/{orphan}").exists())


SUPERVISE = """
import asyncio, pathlib, sys
from services.cli.embedded.home import Home
from services.cli.embedded.managed_process import ManagedProcess
from services.cli.embedded.processes import MARK
from services.cli.embedded.supervisor import Supervisor

async def ready(_pid): return True

async def main():
    home = Home(pathlib.Path(sys.argv[1]))
    supervisor = Supervisor(home, print, start_timeout_s=10)
    await supervisor.start(ManagedProcess("gateway", (sys.executable, "-c", "import time; time.sleep(600)"), ready, {MARK: str(home.path)}))
    print("started", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_parts_do_not_outlive_a_killed_supervisor(home: Home) -> None:
    with subprocess.Popen([sys.executable, "-c", SUPERVISE, str(home.path)], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout
        assert supervisor.stdout.readline() == "started\n"
        assert len(processes.marked(home.path)) == 1
        supervisor.kill()
    eventually_sync(lambda: processes.marked(home.path) == set())


async def test_a_missing_program_is_an_error(home: Home, supervisor: Supervisor, make_process: MakeProcess) -> None:
    part = dataclasses.replace(make_process("registry", ""), command=("/no/such/program",))
    with pytest.raises(ProcessStartFailed, match="^registry cannot be started: No such file or directory"):
        await supervisor.start(part)


async def test_logs_are_truncated_even_if_one_cannot_be(home: Home, lines: list[str]) -> None:
    """The broken log is a dangling link; it is reported once."""
    (home.logs / "broken.log").symlink_to("/no/such/file")
    supervisor = Supervisor(home, lines.append, start_timeout_s=30, log_check_s=0.02)
    try:
        for _ in range(2):
            with (home.logs / "gateway.log").open("wb") as log:
                log.truncate(LOG_LIMIT_BYTES + 1)
            await eventually(lambda: (home.logs / "gateway.log").stat().st_size == 0)
    finally:
        await supervisor.stop()
    assert lines == [f"cannot truncate {home.logs}/broken.log: No such file or directory"]
