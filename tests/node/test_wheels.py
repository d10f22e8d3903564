"""Archives that try to exhaust the memory of the reader."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.node.wheels import Wheel
from services.protocol.errors import InvalidModelFile

MIB = 1024**2


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB


def archive(folder: Path, members: dict[str, bytes], *, packed: int = zipfile.ZIP_DEFLATED) -> Path:
    path = folder / "evil-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", packed) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def test_many_licences_are_truncated(tmp_path: Path) -> None:
    page = b"Do as you like. " * 65_536
    path = archive(tmp_path, {f"evil-1.0.dist-info/licenses/LICENSE-{number}": page for number in range(100)})
    with little_memory(), Wheel(path) as wheel:
        text = wheel.license()
    assert text.startswith("Do as you like. Do as")
    assert text.endswith("(The package contains more licence texts.)")
    assert len(text) < MIB


def test_a_few_licences_are_complete(tmp_path: Path) -> None:
    names = [f"evil-1.0.dist-info/licenses/{name}" for name in ("COPYING", "LICENSE")]
    with Wheel(archive(tmp_path, dict(zip(names, (b"a\0", b"b"), strict=True)))) as wheel:
        assert wheel.license() == "a\nb"


def test_reading_many_checksums_takes_little_memory(tmp_path: Path) -> None:
    lines = b"".join(b"%064x  m.gguf\n" % number for number in range(20_000))
    with little_memory(), Wheel(archive(tmp_path, {f"{number}/SHA256SUMS": lines for number in range(50)})) as wheel:
        assert list(wheel.sums()) == ["m.gguf"]


def test_too_long_a_list_of_files_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, {f"{number:0100}": b"" for number in range(30_000)}, packed=zipfile.ZIP_STORED)
    with little_memory(), pytest.raises(InvalidModelFile, match="contains too many files for a package with a model"):
        Wheel(path)


@pytest.mark.parametrize("packed", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_unsupported_compression_is_refused(tmp_path: Path, packed: int) -> None:
    path = archive(tmp_path, {"m.gguf": bytes(64 * MIB)}, packed=packed)
    with little_memory(), Wheel(path) as wheel, pytest.raises(InvalidModelFile, match="is not a valid wheel"):
        list(wheel.chunks("m.gguf"))
