"""Plans of several files, as registries give them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from services.node.downloads.download import Patience
from services.node.downloads.downloads import Downloads
from services.node.downloads.location import Location
from services.node.downloads.plan import PlannedFile
from services.node.downloads.rate import RateLimit
from services.node.downloads.web import Broken, Session, Web
from services.node.model_file import FetchedFile, Role
from services.node.progress import Progress
from services.node.store import Store
from services.protocol.errors import Unavailable
from services.protocol.jobs import JobProgress
from tests.doubles.file_server import FileServer, serve_file
from tests.node.downloading import LOOPBACK, MIB

WEIGHTS, LICENSE = bytes(range(256)) * (4 * 4096), b"Do as you like.\n" * 64


class NamedFile(NamedTuple):
    """A file whose size and digest the source knows, as a registry's manifest gives them."""

    url: str
    digest: str
    size: int

    @property
    def identity(self) -> str:
        return self.url

    @property
    def shown(self) -> str:
        return self.url

    async def resolve(self, session: Session) -> Location:
        return Location(self.url, self.size, "", ranged=True)


class Registry:
    def __init__(self, *files: tuple[Role, FileServer]) -> None:
        self._files = files
        self.failures = 0

    async def plan(self, session: Session) -> tuple[PlannedFile, ...]:
        if self.failures:
            self.failures -= 1
            raise Broken("the registry answered 503")
        return tuple(PlannedFile(role, named(files)) for role, files in self._files)


def named(files: FileServer) -> NamedFile:
    return NamedFile(files.url, f"sha256:{hashlib.sha256(files.data).hexdigest()}", len(files.data))


class Fetcher:
    def __init__(self, store: Store) -> None:
        self.lines: list[JobProgress] = []
        self._store = store
        self._downloads = Downloads(Web(LOOPBACK, stall_s=5), RateLimit(0), Patience(wait_s=0.01))

    def __call__(self, source: Registry) -> list[tuple[Role, bytes]]:
        """The roles and contents of the files."""
        progress = Progress("job", self.lines.append, stopping=threading.Event(), cancelled=threading.Event())
        with self._store.staging() as staging:
            fetched: tuple[FetchedFile, ...] = self._downloads.fetch(source, staging, progress)
            return [(file.role, file.blob.path.read_bytes()) for file in fetched]


@pytest.fixture
def weights() -> Iterator[FileServer]:
    with serve_file(WEIGHTS) as files:
        yield files


@pytest.fixture
def license_text() -> Iterator[FileServer]:
    with serve_file(LICENSE) as files:
        yield files


def test_the_files_come_in_the_plans_order(store: Store, weights: FileServer, license_text: FileServer) -> None:
    fetcher = Fetcher(store)
    source = Registry((Role.MODEL, weights), (Role.LICENSE, license_text))
    source.failures = 2
    assert fetcher(source) == [(Role.MODEL, WEIGHTS), (Role.LICENSE, LICENSE)]
    bars = [line for line in fetcher.lines if line.total and line.completed == line.total]
    assert [bar.digest for bar in bars] == [named(weights).digest, named(license_text).digest]


def test_a_file_that_is_there_twice_is_fetched_once(store: Store, license_text: FileServer) -> None:
    fetched = Fetcher(store)(Registry((Role.LICENSE, license_text), (Role.LICENSE, license_text)))
    assert fetched == [(Role.LICENSE, LICENSE)] * 2
    assert license_text.sent == len(LICENSE)


def test_two_plans_in_opposite_order_do_not_wait_for_each_other(
    store: Store, weights: FileServer, license_text: FileServer
) -> None:
    weights.bytes_per_s = license_text.bytes_per_s = 2 * MIB
    files = [(Role.MODEL, weights), (Role.LICENSE, license_text)]
    found: list[list[tuple[Role, bytes]]] = []
    threads = [
        threading.Thread(target=lambda order=order: found.append(Fetcher(store)(Registry(*order))))
        for order in (files, files[::-1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert sorted(map(len, found)) == [2, 2]


def test_a_registry_that_stays_away(store: Store) -> None:
    source = Registry()
    source.failures = 1000
    with pytest.raises(Unavailable, match="the registry answered 503"):
        Fetcher(store)(source)


def test_the_space_for_all_files_is_needed_at_once(store: Store, weights: FileServer, license_text: FileServer) -> None:
    with ExitStack() as stack:
        import shutil

        other = stack.enter_context(store.staging())
        other.claim.set(shutil.disk_usage(store.root).free - 64 * MIB - len(WEIGHTS) - len(LICENSE) // 2 - 16 * MIB)
        license_text.data = LICENSE * (24 * MIB // len(LICENSE))
        with pytest.raises(Unavailable, match="are missing"):
            Fetcher(store)(Registry((Role.MODEL, weights), (Role.LICENSE, license_text)))
    assert weights.sent == 0
