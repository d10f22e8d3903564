"""Downloads that outlive their agent, their job, their connection: what arrived is not fetched again."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.node.downloads.partials import KEPT_S, Partial
from services.node.progress import Stopping
from services.node.store import Store
from services.protocol.errors import Unavailable
from services.protocol.jobs import PULL_CANCELLED, JobCancellations, JobFailed, JobSucceeded, Pull
from services.protocol.messages import new_id
from tests.conditions import eventually, eventually_sync
from tests.doubles.file_server import FileServer, serve_file
from tests.doubles.job_sender import NAME, Driver
from tests.node.downloading import MIB, UrlPuller, padded

SIZE = 48 * MIB

StartAgent = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def data(tiny_gguf: Path) -> bytes:
    return padded(tiny_gguf, SIZE)


@pytest.fixture
def files(data: bytes) -> Iterator[FileServer]:
    with serve_file(data) as files:
        yield files


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "a stop"])
async def test_the_next_agent_fetches_the_rest(
    start_agent: StartAgent, driver: Driver, files: FileServer, data: bytes, tmp_path: Path, end: signal.Signals
) -> None:
    files.bytes_per_s, files.limit = MIB, SIZE // 2
    agent = start_agent(CORRAL_SOURCE_HOSTS="127.0.0.1")
    job = Pull(new_id(), files.url, NAME)
    driver.send(job)
    await eventually(lambda: files.sent >= SIZE // 2, timeout_s=60, what="half of the file")
    agent.send_signal(end)
    agent.wait(60)
    files.bytes_per_s = files.limit = None

    start_agent(CORRAL_SOURCE_HOSTS="127.0.0.1")
    outcome = await driver.outcome(job.job, timeout_s=60)
    assert isinstance(outcome, JobSucceeded), outcome
    assert files.sent - SIZE <= 0.02 * SIZE
    assert outcome.pulled
    blob = tmp_path / "store" / "blobs" / outcome.pulled.layers[0].digest.replace(":", "-")
    assert hashlib.sha256(blob.read_bytes()).digest() == hashlib.sha256(data).digest()


async def test_a_cancelled_pull_fails_and_a_later_one_goes_on(
    start_agent: StartAgent, driver: Driver, files: FileServer, redis: Redis
) -> None:
    files.bytes_per_s, files.limit = MIB, SIZE // 2
    start_agent(CORRAL_SOURCE_HOSTS="127.0.0.1")
    job = Pull(new_id(), files.url, NAME)
    driver.send(job)
    await eventually(lambda: files.sent >= SIZE // 2, timeout_s=60, what="half of the file")
    await JobCancellations(redis).add(job.job)
    outcome = await driver.outcome(job.job)
    assert isinstance(outcome, JobFailed)
    assert (outcome.code, outcome.message) == ("conflict", PULL_CANCELLED)
    files.bytes_per_s = files.limit = None
    await driver.pull(files.url)
    assert files.sent - SIZE <= 0.02 * SIZE


def half_downloaded(puller: UrlPuller, files: FileServer) -> None:
    """Stops a pull after half of the file."""
    files.bytes_per_s, files.limit = MIB, SIZE // 2
    ended = threading.Event()

    def run() -> None:
        with pytest.raises(Stopping):
            puller(files.url)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    eventually_sync(lambda: files.sent >= SIZE // 2, timeout_s=60)
    puller.stopping.set()
    assert ended.wait(60)
    thread.join()
    puller.stopping.clear()
    files.bytes_per_s = files.limit = None


def test_a_new_store_finds_the_partial(store: Store, files: FileServer, data: bytes) -> None:
    half_downloaded(UrlPuller(store), files)
    store.close()
    again = Store(store.root)
    pulled = UrlPuller(again)(files.url)
    assert again.blob(pulled.layers[0].digest).read_bytes() == data
    assert files.sent - SIZE <= 0.02 * SIZE
    again.close()


def test_a_file_that_changed_since_is_fetched_whole(store: Store, files: FileServer, data: bytes) -> None:
    puller = UrlPuller(store)
    half_downloaded(puller, files)
    files.etag, files.data = '"2"', data[:-1] + b"?"
    pulled = puller(files.url)
    assert store.blob(pulled.layers[0].digest).read_bytes() == files.data


def test_a_partial_is_kept_for_a_day(store: Store, files: FileServer) -> None:
    puller = UrlPuller(store)
    half_downloaded(puller, files)
    store.close()
    (kept,) = puller.partials
    Store(store.root).close()
    assert kept.exists()
    for path in kept.parent.iterdir():
        os.utime(path, (time.time(), time.time() - KEPT_S - 1))
    Store(store.root).close()
    assert list(kept.parent.iterdir()) == []


def test_a_partial_makes_room_for_another_pull(store: Store, files: FileServer) -> None:
    puller = UrlPuller(store)
    half_downloaded(puller, files)
    with store.staging() as staging, pytest.raises(Unavailable):
        staging.claim.set(10**18)
    assert puller.partials == []


def test_two_pulls_of_one_file_are_one_download(store: Store, files: FileServer, data: bytes) -> None:
    files.bytes_per_s = 4 * MIB
    pullers = [UrlPuller(store), UrlPuller(store)]
    threads = [
        threading.Thread(target=puller, args=(files.url, f"registry.ollama.ai/library/m{number}:latest"))
        for number, puller in enumerate(pullers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.sent <= SIZE + 8
    assert len(store.blobs()) == 2
    for puller in pullers:
        bars = [line for line in puller.lines if line.total]
        assert bars[-1].completed == SIZE
        assert len(bars) > 2, "the one that waits shows the progress too"


def test_the_next_in_line_goes_on_where_the_first_failed(store: Store, files: FileServer, data: bytes) -> None:
    files.bytes_per_s, files.limit = MIB, SIZE // 4
    first, second = UrlPuller(store), UrlPuller(store)
    stopped = threading.Event()

    def fail() -> None:
        with pytest.raises(Stopping):
            first(files.url)
        stopped.set()

    threads = [threading.Thread(target=fail), threading.Thread(target=second, args=(files.url,))]
    threads[0].start()
    eventually_sync(lambda: files.sent >= SIZE // 4, timeout_s=60)
    threads[1].start()
    time.sleep(0.5)
    first.stopping.set()
    assert stopped.wait(60)
    files.bytes_per_s = files.limit = None
    for thread in threads:
        thread.join()
    assert len(store.blobs()) == 2
    assert files.sent - SIZE <= 0.02 * SIZE


def test_a_rate_limit_holds_for_all_downloads_together(store: Store, files: FileServer, data: bytes) -> None:
    files.data = data[: 3 * MIB]
    began = time.monotonic()
    UrlPuller(store, bytes_per_s=2 * MIB)(files.url)
    assert time.monotonic() - began >= 1.3


def test_two_pulls_do_not_promise_the_same_bytes(store: Store) -> None:
    import shutil

    free = shutil.disk_usage(store.root).free
    with store.staging() as one, store.staging() as other:
        one.claim.set(int(free * 0.6))
        with pytest.raises(Unavailable, match="are missing"):
            other.claim.set(int(free * 0.6))
        one.claim.spend(int(free * 0.5))
        other.claim.set(int(free * 0.6))


def test_a_disk_that_fills_up(store: Store, files: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def write(partial: Partial, start: int, data: bytes) -> None:
        nonlocal written
        written += len(data)
        if written > SIZE / 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_write(partial, start, data)

    real_write = Partial.write
    monkeypatch.setattr(Partial, "write", write)
    puller = UrlPuller(store)
    with pytest.raises(Unavailable, match=r"the disk that holds .* is full; 2\d.\d MB more are needed"):
        puller(files.url)
    monkeypatch.undo()
    sent = files.sent
    puller(files.url)
    assert files.sent - sent < 0.6 * SIZE, "what fitted is kept"


def test_a_file_larger_than_the_disk_is_not_begun(store: Store, files: FileServer) -> None:
    files.claimed_range = f"bytes 0-3/{10**17}"
    with pytest.raises(Unavailable, match="100000000000.0 MB needed"):
        UrlPuller(store)(files.url)
    assert files.bodies == []
