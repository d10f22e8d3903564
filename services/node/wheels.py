"""What a wheel holds of a model. The archive is untrusted: nothing in it is run, or written to a path that it names."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import NamedTuple, Self

from services.node.pip import Requirement
from services.protocol.errors import BadRequest, InvalidModelFile

_CHUNK_BYTES = 1024**2
#: Of a text file in a wheel no more than this is read.
_TEXT_LIMIT_BYTES = 1024**2

_PART = re.compile(r"(?P<model>[^/]+\.gguf)\.part(?P<number>\d{1,6})")
_SUM = re.compile(r"([0-9a-f]{64}) [ *]?(\S.*)")
_LICENSE = re.compile(r"[^/]+\.dist-info/(licenses/)?(LICEN[CS]E|COPYING)[^/]*", re.IGNORECASE)


class Part(NamedTuple):
    """`model` is the name of the whole file."""

    model: str
    number: int
    member: str


class Wheel:
    """An open wheel. Raises InvalidModelFile, from every method, where the archive is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._damage():
            self._archive = zipfile.ZipFile(path)
        self._members = [name for name in self._archive.namelist() if not name.endswith("/")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._archive.close()

    @property
    def models(self) -> list[str]:
        return sorted(name for name in self._members if name.lower().endswith(".gguf"))

    @property
    def parts(self) -> list[Part]:
        """Pieces of a GGUF that was cut to fit the index's size limit, in their order."""
        names = ((PurePosixPath(name).name, name) for name in self._members)
        return sorted(
            Part(match["model"], int(match["number"]), member) for name, member in names if (match := _PART.fullmatch(name))
        )

    def sums(self) -> dict[str, str]:
        """sha256 by file name, from every SHA256SUMS in the wheel."""
        texts = [self._text(name) for name in self._members if PurePosixPath(name).name == "SHA256SUMS"]
        lines = [match for text in texts for line in text.splitlines() if (match := _SUM.fullmatch(line.strip()))]
        return {PurePosixPath(line[2]).name: line[1] for line in lines}

    def license(self) -> str:
        """The licence texts, or nothing."""
        return "\n".join(self._text(name) for name in sorted(filter(_LICENSE.fullmatch, self._members)))

    def requirements(self) -> list[Requirement]:
        """Those of the wheel's dependencies that are a plain `name` or `name==version`."""
        metadata = next((name for name in self._members if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)), None)
        header = self._text(metadata).replace("\r\n", "\n").split("\n\n", 1)[0] if metadata else ""
        found = []
        for line in header.splitlines():
            if line.lower().startswith("requires-dist:"):
                try:
                    found.append(Requirement.parse(line.split(":", 1)[1]))
                except BadRequest:
                    continue
        return found

    def size(self, member: str) -> int:
        """Bytes of the member, unpacked."""
        return self._archive.getinfo(member).file_size

    def chunks(self, member: str) -> Iterator[bytes]:
        with self._damage(), self._archive.open(member) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def _text(self, member: str) -> str:
        with self._damage(), self._archive.open(member) as file:
            return file.read(_TEXT_LIMIT_BYTES).decode(errors="replace").replace("\0", "")

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InvalidModelFile(f"{self.path.name} is damaged: {error}") from error
