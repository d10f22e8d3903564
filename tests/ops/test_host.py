"""How `make test-compose` records, restores and compares its machine, and when it is skipped."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.compose import preparation
from tests.compose.host import Host, complete
from tests.conditions import eventually_sync

EMPTY = Host(switches={"net/ipv4/ip_forward": "0"}, firewalls={"iptables": "", "ip6tables": ""}, links=[], files={})
FORWARD_DROP = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n-A FORWARD -j DOCKER\nCOMMIT\n"
OPEN = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"


def test_every_change_by_an_engine_is_a_difference() -> None:
    changed = Host(
        switches={"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"},
        firewalls={"iptables": FORWARD_DROP, "ip6tables": ""},
        links=["docker0"],
        files={"/etc/apt/sources.list.d/docker.list": "x"},
    )
    assert EMPTY.differences(changed) == [
        "net/ipv4/ip_forward was 0",
        "iptables: filter -A FORWARD -j DOCKER",
        "iptables: filter :DOCKER - [0:0]",
        "iptables: filter :FORWARD DROP [0:0]",
        "network interface docker0",
        "file /etc/apt/sources.list.d/docker.list",
    ]


def test_tables_that_accept_everything_count_as_empty() -> None:
    assert not EMPTY.differences(replace(EMPTY, firewalls={"iptables": OPEN, "ip6tables": OPEN}))


def test_a_firewall_is_restored_with_its_rules() -> None:
    mine = "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
    nat = "*nat\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n"
    assert complete(mine, FORWARD_DROP + nat) == mine + "*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
    assert complete("", FORWARD_DROP) == OPEN


def test_this_machine_has_no_differences_to_itself(tmp_path: Path) -> None:
    file = tmp_path / "host.json"
    Host.look().save(file)
    assert not Host.load(file).differences(Host.look())


@pytest.mark.parametrize(("code", "error"), [(3, preparation.Unavailable), (1, preparation.PreparationFailed)])
def test_only_an_unavailable_resource_is_a_skip(tmp_path: Path, code: int, error: type[Exception]) -> None:
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/sh\necho first\necho the reason\nexit {code}\n")
    script.chmod(stat.S_IRWXU)
    with pytest.raises(error, match="the reason"):
        preparation.script(script)


def test_a_second_run_waits_for_the_first(tmp_path: Path) -> None:
    """It continues when the first has ended, also by SIGKILL."""
    lock = f"\0corral-tests-{os.getpid()}"
    code = f"from tests.compose.preparation import alone\nwith alone({lock!r}):\n    print('in', flush=True)\n    input()\n"
    one, two = tmp_path / "1", tmp_path / "2"
    with _started(code, one) as first, _started(code, two) as second:
        eventually_sync(lambda: len(one.read_text() + two.read_text()) > 20, timeout_s=120, what="one run in, one waiting")
        holder, waiting, file = (first, second, two) if one.read_text() == "in\n" else (second, first, one)
        assert "waits for its end" in file.read_text()
        assert waiting.poll() is None
        holder.kill()
        eventually_sync(lambda: file.read_text().endswith("in\n"), timeout_s=120, what="the second run")


@contextmanager
def _started(code: str, file: Path) -> Iterator[subprocess.Popen[bytes]]:
    with file.open("wb") as out, subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=out) as process:
        try:
            yield process
        finally:
            process.kill()
