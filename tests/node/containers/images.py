"""An image for worker containers, imported without a registry or a build: this Python, the libraries that it loads, the
packages that the worker imports, and our code, in one layer."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
CODE = "/app"
PACKAGES = "/packages"

#: Parts of the standard library that the worker does not need.
_LEFT_OUT = re.compile(r"site-packages|test|idlelib|tkinter|lib2to3|ensurepip|config-.*|__pycache__")
_IMPORTED = """
import json, os, sys
import services.worker.__main__, services.worker.accelerators
folders = [folder for folder in sys.path if folder.endswith("site-packages")]
files = [module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
print(json.dumps(sorted({
    os.path.join(folder, os.path.relpath(file, folder).split(os.sep)[0])
    for folder in folders for file in files if file.startswith(folder)
})))
"""


def import_image(engine: Any, tag: str) -> None:
    """Takes a few seconds."""
    with tarfile.open(fileobj=(layer := io.BytesIO()), mode="w") as archive:
        for name, path in _contents(_packages()):
            archive.add(path.resolve(), name, recursive=False)
        link = tarfile.TarInfo("/usr/bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, _interpreter().as_posix()
        archive.addfile(link)
    changes = [f"ENV PYTHONPATH={CODE}:{PACKAGES} PYTHONDONTWRITEBYTECODE=1", f"WORKDIR {CODE}"]
    engine.import_image_from_data(layer.getvalue(), repository=tag, changes=changes)


def _interpreter() -> Path:
    return Path(sys.executable).resolve()


def _packages() -> list[Path]:
    """The worker's packages, the library folders that some keep next to them, and the metadata of every package."""
    done = subprocess.run([sys.executable, "-c", _IMPORTED], capture_output=True, check=True, cwd=ROOT)
    found = [Path(path) for path in json.loads(done.stdout)]
    libraries = [beside for path in found if (beside := path.with_name(f"{path.name}.libs")).exists()]
    return [*found, *libraries, *found[0].parent.glob("*.dist-info")]


def _contents(packages: list[Path]) -> Iterator[tuple[str, Path]]:
    """Names in the image, and their files."""
    python = _interpreter()
    library = Path(sys.base_prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    yield from ((str(path), path) for path in [python, *_below(library)])
    for package in packages:
        yield from ((f"{PACKAGES}/{path.relative_to(package.parent)}", path) for path in _below(package))
    yield from ((f"{CODE}/{path.relative_to(ROOT)}", path) for path in _below(ROOT / "services"))
    objects = [python, *(path for folder in [library, *packages] for path in _below(folder) if ".so" in path.name)]
    yield from ((str(path), path) for path in _needed(objects))


def _below(path: Path) -> Iterator[Path]:
    """Only files: tar creates their folders, readable by everyone."""
    if path.is_file():
        yield path
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not _LEFT_OUT.fullmatch(name)]
        yield from (Path(folder, name) for name in files)


def _needed(objects: list[Path]) -> list[Path]:
    """The system libraries that these files load, directly or indirectly."""
    listed = subprocess.run(["ldd", *map(str, objects)], capture_output=True, text=True, check=False).stdout
    found = {Path(match) for match in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed, re.MULTILINE)}
    return sorted(path for path in found if "site-packages" not in path.parts)
