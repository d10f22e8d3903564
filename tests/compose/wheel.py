"""Packs the installed llama-cpp-python into a wheel again, so that an image for this machine need not compile it."""

from __future__ import annotations

import platform
import zipfile
from importlib import metadata
from pathlib import Path

#: The C library of the image. Code linked against a newer one does not run there.
IMAGE_GLIBC = (2, 36)

#: Files that installers add.
_INSTALLERS = ("INSTALLER", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json")


def fits() -> bool:
    """True if the image can run the code that was compiled on this machine."""
    library, version = platform.libc_ver()
    return library == "glibc" and tuple(int(part) for part in version.split(".")[:2]) <= IMAGE_GLIBC


def write(folder: Path) -> Path:
    distribution = metadata.distribution("llama-cpp-python")
    tag = (distribution.read_text("WHEEL") or "").partition("Tag: ")[2].splitlines()[0]
    path = folder / f"llama_cpp_python-{distribution.version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in distribution.files or ():
            if file.suffix != ".pyc" and file.name not in _INSTALLERS and ".." not in file.parts:
                archive.write(str(file.locate()), str(file))
    return path
