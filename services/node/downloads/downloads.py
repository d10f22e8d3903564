"""Fetches the files of a plan: what the store has is not fetched, what another pull fetches is waited for, the rest is downloaded,
and all of it is verified."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from services.node.downloads import record as records
from services.node.downloads.download import Download, Patience, until_answered
from services.node.downloads.partials import Partial, PartialInUse
from services.node.downloads.plan import RemoteFile, RemoteSource
from services.node.downloads.rate import RateLimit
from services.node.downloads.web import Session, Web
from services.node.model_file import FetchedFile
from services.node.progress import Progress, bar_digest
from services.node.store import StagedBlob, Staging
from services.protocol.errors import InvalidModelFile

#: How often a pull publishes its progress, and looks whether it should end.
TICK_S = 0.2

_HASHED_BYTES = 8 * 1024**2

#: How often a server is asked at the start of a pull: a wrong host name is reported soon.
FIRST_TRIES = 3

T = TypeVar("T")

log = logging.getLogger(__name__)


class Downloads:
    """The downloads of a node. Thread-safe."""

    def __init__(self, web: Web, limit: RateLimit, patience: Patience) -> None:
        self._web = web
        self._limit = limit
        self._patience = patience

    def fetch(self, source: RemoteSource, staging: Staging, progress: Progress) -> tuple[FetchedFile, ...]:
        """Fetches the files of the source's plan. Raises InvalidModelFile if a file has not the digest that the source promises,
        Unavailable if the source or the disk fails, and what the source and `progress` raise."""
        return asyncio.run(self._fetch(source, staging, progress))

    async def _fetch(self, source: RemoteSource, staging: Staging, progress: Progress) -> tuple[FetchedFile, ...]:
        async with self._web.session() as session:
            fetch = _Fetch(staging, progress, session, self._limit, self._patience)
            return await fetch.watched(fetch.files(source))


class _Fetch:
    """One fetch. While it works, `watched` publishes the progress of the file that is shown."""

    def __init__(self, staging: Staging, progress: Progress, session: Session, limit: RateLimit, patience: Patience) -> None:
        self._staging = staging
        self._progress = progress
        self._session = session
        self._limit = limit
        self._patience = patience
        self._reporting = asyncio.Lock()
        self._shown: tuple[RemoteFile, Partial] | None = None

    async def watched(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs the work. Ends it if `progress` raises, because the agent stops or the pull is cancelled."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=TICK_S)
                await self._report(self._tick)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def files(self, source: RemoteSource) -> tuple[FetchedFile, ...]:
        first = self._patience._replace(tries=min(FIRST_TRIES, self._patience.tries))
        plan = await until_answered(lambda: source.plan(self._session), first)
        files = {_key(file): file for _, file in plan}
        # All pulls open partials in the same order, so that two never wait for each other.
        opened = {key: await self._open(files[key], first) for key in sorted(files)}
        downloads = [found for key in files if isinstance(found := opened[key], Download)]
        self._staging.claim.add(sum(download.missing for download in downloads))
        for download in downloads:
            await self._run(download)
        await self._report(lambda: self._progress.say("verifying sha256 digest"))
        blobs = {key: await self._verified(found) for key, found in opened.items()}
        return tuple(FetchedFile(role, blobs[_key(file)]) for role, file in plan)

    async def _open(self, file: RemoteFile, patience: Patience) -> Download | StagedBlob:
        """The file from the store, or a download that has not started. Waits while another pull downloads the file."""
        partial = await self._partial(file)
        if blob := await self._reused(file, file.digest):
            return blob
        location = await until_answered(lambda: file.resolve(self._session), patience)
        if blob := await self._reused(file, records.verified_digest(partial.load(), location)):
            return blob
        return Download(
            file,
            partial,
            location,
            session=self._session,
            claim=self._staging.claim,
            limit=self._limit,
            patience=self._patience,
        )

    async def _reused(self, file: RemoteFile, digest: str) -> StagedBlob | None:
        blob = self._staging.reuse(digest) if digest else None
        if blob:
            await self._show_whole(file, blob.size)
        return blob

    async def _partial(self, file: RemoteFile) -> Partial:
        while True:
            try:
                return self._staging.enter(self._staging.partials.open(_key(file)))
            except PartialInUse as use:
                self._shown = file, use.partial
                await asyncio.sleep(TICK_S)

    async def _run(self, download: Download) -> None:
        self._shown = download.file, download.partial
        await download.run()
        await self._show_whole(download.file, download.size)

    async def _verified(self, found: Download | StagedBlob) -> StagedBlob:
        """A file of the store was verified when it came there. A download with the wrong digest is downloaded once more."""
        if isinstance(found, StagedBlob):
            return found
        digest = await self._digest(found)
        wanted = found.file.digest or digest
        if digest != wanted:
            log.warning("wrong digest, downloading again: file=%s want=%s got=%s", found.file.shown, wanted, digest)
            await found.start_over()
            await self._run(found)
            digest = await self._digest(found)
        if digest != wanted:
            raise InvalidModelFile(f"digest mismatch, in a second download too: want {wanted}, got {digest}")
        await found.save(digest)
        return StagedBlob(found.partial.path, digest, found.size)

    async def _digest(self, download: Download) -> str:
        sha256 = hashlib.sha256()

        def hash_piece(start: int) -> None:
            sha256.update(download.partial.read(start, _HASHED_BYTES))

        for start in range(0, download.size, _HASHED_BYTES):
            await asyncio.to_thread(hash_piece, start)
        return f"sha256:{sha256.hexdigest()}"

    async def _show_whole(self, file: RemoteFile, size: int) -> None:
        self._shown = None
        await self._report(lambda: self._progress.bar(_bar(file), completed=size, total=size))

    def _tick(self) -> None:
        self._progress.check()
        shown = self._shown
        if shown and shown[1].total:
            file, partial = shown
            self._progress.bar(_bar(file), completed=partial.completed, total=partial.total)

    async def _report(self, publish: Callable[[], None]) -> None:
        """Calls `publish` on another thread, because it waits for Redis. One call at a time."""
        async with self._reporting:
            await asyncio.to_thread(publish)


def _key(file: RemoteFile) -> str:
    return records.key_of(file.identity, file.digest)


def _bar(file: RemoteFile) -> str:
    return file.digest or bar_digest(file.shown)
