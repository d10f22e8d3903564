"""The download of one file: connections that fetch parts side by side into a partial file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

from services.node.downloads import record as records
from services.node.downloads.answers import Verdict, retry_after_s, verdict, verdict_on_whole
from services.node.downloads.location import Location
from services.node.downloads.partials import Partial
from services.node.downloads.plan import RemoteFile
from services.node.downloads.ranges import Range, Ranges
from services.node.downloads.rate import RateLimit
from services.node.downloads.record import Record
from services.node.downloads.transfer import Transfer
from services.node.downloads.web import Answer, Broken, Session
from services.node.room import Claim, disk_errors
from services.protocol.errors import Unavailable

#: Connections of one file.
CONNECTIONS = 8

#: How many times `Transfer.save_bytes` may be on the disk and in no record.
UNSAVED_LIMIT = 3

#: How often a file may turn out to be another one while it is downloaded.
STARTS = 3

T = TypeVar("T")

log = logging.getLogger(__name__)


class Patience(NamedTuple):
    """How long a download puts up with failures. `tries`: failures in a row, without a byte in between. The wait before the next
    try doubles from `wait_s` to `longest_wait_s`."""

    tries: int = 8
    wait_s: float = 0.5
    longest_wait_s: float = 30.0

    def wait_after(self, failures: int) -> float:
        return min(self.wait_s * 2.0 ** (failures - 1), self.longest_wait_s)


class StartOver(Exception):
    """The bytes so far are not part of the file that the server has now. `ranged`: whether to ask for ranges again."""

    def __init__(self, *, ranged: bool) -> None:
        super().__init__()
        self.ranged = ranged


class Download:
    """Used on one event loop. `run` fetches the bytes that the partial file does not have yet."""

    def __init__(
        self,
        file: RemoteFile,
        partial: Partial,
        location: Location,
        *,
        session: Session,
        claim: Claim,
        limit: RateLimit,
        patience: Patience,
    ) -> None:
        self.file = file
        self.partial = partial
        self._session = session
        self._claim = claim
        self._limit = limit
        self._patience = patience
        self._saving = asyncio.Lock()
        self._resolving = asyncio.Lock()
        self._begin(location, records.resumed(partial.load(), location, digest=file.digest))
        if self._saved:
            log.info("download resumes: file=%s completed=%d size=%d", file.shown, self._saved, self.size)

    @property
    def size(self) -> int:
        return self._transfer.size

    @property
    def missing(self) -> int:
        return self._transfer.missing

    async def run(self) -> None:
        """Raises Unavailable if the server or the disk does not allow it, and what `resolve` raises."""
        for _ in range(STARTS):
            try:
                await self._fetch_missing()
                return
            except StartOver as change:
                await self.start_over(ranged=change.ranged)
        raise Unavailable(f"{self.file.shown} is a different file each time that it is asked for")

    async def start_over(self, *, ranged: bool = True) -> None:
        """Forgets the bytes that have arrived, and asks again where the file is."""
        log.info("download starts over: file=%s completed=%d", self.file.shown, self._transfer.completed)
        missing_before = self.missing
        self.partial.clear()
        location = await self._resolve()
        self._begin(location._replace(ranged=location.ranged and ranged))
        self._claim.add(self.missing - missing_before)

    async def save(self, digest: str = "") -> None:
        """Saves which bytes are in the file, and the digest of the file if it is verified."""
        async with self._saving:
            completed = self._transfer.completed
            done = tuple((one.start, one.stop) for one in self._transfer.done)
            record = Record(self.size, self._location.validator, done, digest)
            with self._disk_errors():
                await asyncio.to_thread(self.partial.save, record)
            self._saved = completed

    def _begin(self, location: Location, done: Ranges = ()) -> None:
        self._location = location
        self._transfer = Transfer(location.size, done, whole=not location.ranged)
        self._saved = self._transfer.completed
        self.partial.total, self.partial.completed = self.size, self._transfer.completed

    async def _fetch_missing(self) -> None:
        try:
            await together([self._work() for _ in range(1 if self._transfer.whole else CONNECTIONS)])
        finally:
            if self._transfer.completed > self._saved:
                await self.save()

    async def _work(self) -> None:
        """Fetches parts until none is left."""
        failures = 0
        while part := self._transfer.take():
            completed, wait_s = self._transfer.completed, 0.0
            try:
                await self._fetch(part)
                failures = 0
            except Broken as error:
                # Another connection's bytes count too: the server is alive.
                failures = 1 if self._transfer.completed > completed and not self._transfer.whole else failures + 1
                log.debug("part broken: file=%s start=%d failures=%d: %s", self.file.shown, part.start, failures, error)
                if failures >= self._patience.tries:
                    raise Unavailable(f"{self.file.shown}: {error}, {failures} times in a row") from error
                wait_s = max(error.wait_s, self._patience.wait_after(failures))
            finally:
                self._transfer.release(part)
            await asyncio.sleep(wait_s)

    async def _fetch(self, part: Range) -> None:
        location = self._location
        async with self._session.get(location.url, None if self._transfer.whole else part) as answer:
            match self._verdict(part, answer):
                case Verdict.TAKE:
                    return await self._receive(part, answer)
                case Verdict.START_OVER:
                    raise StartOver(ranged=answer.status != 200)
                case Verdict.REFUSE:
                    raise Unavailable(f"{self.file.shown}: the server answered {answer.status}")
                case Verdict.RETRY:
                    raise Broken(f"the server answered {answer.status}", wait_s=retry_after_s(answer.headers))
                case Verdict.RESOLVE:
                    pass
        await self._renew(location)
        raise Broken(f"the server answered {answer.status}")

    def _verdict(self, part: Range, answer: Answer) -> Verdict:
        # Mirrors of one file may have different validators; the digest proves that it is the same file.
        validator = "" if self.file.digest else self._location.validator
        if self._transfer.whole:
            return verdict_on_whole(self.size, validator, answer.status, answer.headers)
        return verdict(part, self.size, validator, answer.status, answer.headers)

    async def _receive(self, part: Range, answer: Answer) -> None:
        """Writes the body into the file. Raises Broken if it ends early."""
        position = part.start
        async for chunk in answer.chunks():
            if position == part.stop:
                break  # the server sends more than it was asked for
            data = chunk[: part.stop - position]
            with self._disk_errors():
                self.partial.write(position, data)
            self._transfer.write(position, len(data))
            self._claim.spend(len(data))
            self.partial.completed = self._transfer.completed
            position += len(data)
            await self._save_if_due()
            await asyncio.sleep(self._limit.delay_s(len(data)))
        if position < part.stop:
            raise Broken(f"the answer ended after {position - part.start} of {part.size} bytes")

    async def _save_if_due(self) -> None:
        """If the disk is slower than the network, connections wait for it: a crash must not lose more than it may."""
        unsaved = self._transfer.completed - self._saved
        if self._transfer.whole or unsaved < self._transfer.save_bytes:
            return
        if not self._saving.locked() or unsaved >= UNSAVED_LIMIT * self._transfer.save_bytes:
            await self.save()

    async def _renew(self, old: Location) -> None:
        """Replaces a location that does not work any more, once for all connections."""
        async with self._resolving:
            if self._location is not old:
                return
            location = await self._resolve()
            changed = location.size != old.size or (location.validator != old.validator and not self.file.digest)
            if changed or location.ranged != old.ranged:
                raise StartOver(ranged=True)
            self._location = location

    async def _resolve(self) -> Location:
        return await until_answered(lambda: self.file.resolve(self._session), self._patience)

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(self.partial.path.parent, lambda: self.missing)


async def until_answered(ask: Callable[[], Coroutine[Any, Any, T]], patience: Patience) -> T:
    """Asks a server until it answers. Raises Unavailable if it does not."""
    failures = 0
    while True:
        try:
            return await ask()
        except Broken as error:
            failures += 1
            if failures >= patience.tries:
                raise Unavailable(str(error)) from error
            await asyncio.sleep(max(error.wait_s, patience.wait_after(failures)))


async def together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Runs coroutines side by side. If one fails, cancels the others and raises its error."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
