"""The node agent or the registry is paused for a while under streams: the streams continue, no replica is killed or duplicated,
and models can be loaded afterwards."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from functools import partial

import httpx
import pytest

from tests.conditions import eventually_sync
from tests.end_to_end.conftest import SMOLLM2, Platform

pytestmark = pytest.mark.end_to_end

#: Below and above the leases of workers (3 s) and nodes (5 s).
STALLS_S = (1, 3, 5, 10)


class Streams:
    """Requests answers one after the other until `stop`; asserts that each is complete."""

    def __init__(self, url: str) -> None:
        self.answered = 0
        self._url = url
        self._failures: list[object] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert not self._failures

    def answer_past(self, count: int) -> bool:
        return self.answered > count

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            while not self._stopping.is_set() and not self._failures:
                self._ask(client)

    def _ask(self, client: httpx.Client) -> None:
        body = {"model": SMOLLM2, "prompt": "Once", "raw": True, "options": {"num_predict": 40, "seed": 1, "stop": []}}
        with client.stream("POST", "/api/generate", json=body) as response:
            last = [json.loads(line) for line in response.iter_lines()][-1]
        if last.get("done_reason") in ("length", "stop"):
            self.answered += 1
        else:
            self._failures.append(last)


@pytest.mark.parametrize("part", ["node agent", "registry"])
def test_streams_continue_while_a_part_is_paused(platform: Platform, part: str) -> None:
    streams = Streams(platform.url)
    try:
        eventually_sync(lambda: streams.answered, timeout_s=60, what="the first answer")
        workers = pids(platform)
        for seconds in STALLS_S:
            before = streams.answered
            stall(platform.parts()[part], seconds)
            eventually_sync(partial(streams.answer_past, before + 1), timeout_s=60, what="answers that go on")
            eventually_sync(lambda: node_states(platform) == ["ready"], timeout_s=30, what="a node that is ready")
        eventually_sync(lambda: replica_states(platform) == ["ready"], timeout_s=30, what="one replica")
        assert pids(platform) == workers
    finally:
        streams.stop()
    unload(platform)
    eventually_sync(lambda: not pids(platform), timeout_s=30, what="no worker")
    again = Streams(platform.url)
    eventually_sync(lambda: again.answered, timeout_s=60, what="an answer of a model that was loaded again")
    again.stop()
    assert replica_states(platform) == ["ready"]


def stall(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)  # the fault itself
    finally:
        os.kill(pid, signal.SIGCONT)


def pids(platform: Platform) -> set[int]:
    return {worker.pid for worker in platform.workers()}


def unload(platform: Platform) -> None:
    httpx.post(f"{platform.url}/api/generate", json={"model": SMOLLM2, "keep_alive": 0}, trust_env=False).raise_for_status()


def node_states(platform: Platform) -> list[str]:
    return [node["state"] for node in registry(platform, "nodes")["nodes"]]


def replica_states(platform: Platform) -> list[str]:
    """The states of the model's live replicas."""
    rows = registry(platform, "replicas")["replicas"]
    return [row["state"] for row in rows if row["state"] not in ("stopped", "failed")]


def registry(platform: Platform, path: str) -> dict[str, list[dict[str, str]]]:
    answer = httpx.get(f"{platform.url}/registry/v1/{path}", timeout=30, trust_env=False)
    found: dict[str, list[dict[str, str]]] = answer.raise_for_status().json()
    return found
