"""Models on this machine's disk, in the layout of Ollama's store.

    manifests/<host>/<namespace>/<model>/<tag>     the manifest; <tag> is sha256-<hex> for an earlier version of a tag
    blobs/sha256-<hex>                             one file each, shared by every manifest that names it
    .staging/                                      files that pulls are still writing, gone when the agent ends
    .partial/                                      downloads that the next agent resumes (downloads/partials.py)
    .lock                                          held by the one agent that uses the store

Only the agent that holds the lock writes. Its job threads take `_changing`, so that a deletion cannot remove the blobs of a
pull that is being published. A blob is hashed while it is staged, synced, and then renamed, so a file under blobs/ is always
complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TextIO, TypeVar

import msgspec

from services.node import manifests
from services.node.downloads.partials import Partials
from services.node.room import Claim, Room, disk_errors
from services.protocol.errors import Conflict, InvalidModelFile, NotFound
from services.protocol.names import ModelName
from services.protocol.reports import BlobReport

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_BLOB = re.compile(r"sha256-([0-9a-f]{64})")

T = TypeVar("T")

log = logging.getLogger(__name__)


class StagedBlob(NamedTuple):
    """A file on the store's file system, synced; `digest` as `sha256:<hex>`."""

    path: Path
    digest: str
    size: int


class Store:
    """The store at `root`, which is created if needed. Removes the leftovers of an agent that crashed: staging folders, and
    blobs that no manifest names. Raises Conflict if another agent uses the store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs"
        self._manifests = root / "manifests"
        self._staging = root / ".staging"
        self._changing = threading.Lock()
        for folder in (self._blobs, self._manifests):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(root / ".lock")
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging.mkdir(exist_ok=True)
        self.partials = Partials(root / ".partial")
        self._room = Room(root, make=self.partials.drop_oldest)
        self._drop_unused({blob.digest for blob in self.blobs()})

    def close(self) -> None:
        self._lock.close()

    def blobs(self) -> tuple[BlobReport, ...]:
        found = []
        with os.scandir(self._blobs) as entries:
            for entry in entries:
                match = _BLOB.fullmatch(entry.name)
                with suppress(FileNotFoundError):  # deleted since the scan
                    if match and entry.is_file():
                        found.append(BlobReport(f"sha256:{match[1]}", entry.stat().st_size))
        return tuple(sorted(found, key=lambda blob: blob.digest))

    def blob(self, digest: str) -> Path:
        """The path of a blob. Raises NotFound if the store does not hold it."""
        path = self._blob_path(digest)
        if not path.is_file():
            raise NotFound(f"blob {digest} is not in the store of this node")
        return path

    def manifest(self, name: ModelName) -> str:
        """The text of a manifest. Raises NotFound if the store does not hold it."""
        try:
            return self._manifest_path(name).read_text()
        except FileNotFoundError:
            raise NotFound(f"{name.display} is not in the store of this node") from None

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """A folder for one pull, removed when the block ends."""
        folder = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            with self._room.claim() as claim, ExitStack() as opened:
                yield Staging(self, folder, claim, opened)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, name: ModelName, manifest: str, blobs: Sequence[StagedBlob]) -> None:
        """Moves the blobs to their names, then writes the manifest. The previous manifest of that name is kept under its digest
        until a Delete job removes it. If the manifest cannot be written, blobs that no other manifest uses are removed."""
        with self._changing:
            path = self._manifest_path(name)
            touched = self._references(path) | {blob.digest for blob in blobs}
            try:
                for blob in blobs:
                    self._keep(blob)
                _sync_folder(self._blobs)
                self._keep_predecessor(path, manifest.encode())
                _write_atomically(path, manifest.encode())
            finally:
                self._drop_unused(touched)

    def delete(self, name: ModelName) -> None:
        """Removes the manifest, and the blobs that no other manifest uses. Does nothing if the name does not exist. The name of
        a kept version removes all manifests of its model with that digest."""
        with self._changing:
            digest = name.kept_digest
            paths = self._versions(name, digest) if digest else [self._manifest_path(name)]
            candidates = set[str]().union(*map(self._references, paths))
            for path in paths:
                path.unlink(missing_ok=True)
                self._drop_empty_folders(path.parent)
            self._drop_unused(candidates)

    def _blob_path(self, digest: str) -> Path:
        match = _DIGEST.fullmatch(digest)
        if not match:
            raise NotFound(f"{digest!r} is not a sha256 digest")
        return self._blobs / f"sha256-{match[1]}"

    def _manifest_path(self, name: ModelName) -> Path:
        """The path of the manifest, in the case in which it was first written; the path to create if there is none."""
        for path in self._manifest_files():
            if self._key(path) == name.key:
                return path
        return self._manifests / name.host / name.namespace / name.model / name.tag

    def _versions(self, name: ModelName, digest: str) -> list[Path]:
        model = name.key.rpartition(":")[0]
        found = (path for path in self._manifest_files() if self._key(path).rpartition(":")[0] == model)
        return [path for path in found if hashlib.sha256(path.read_bytes()).hexdigest() == digest]

    def _keep_predecessor(self, path: Path, manifest: bytes) -> None:
        if path.is_file() and (old := path.read_bytes()) != manifest:
            _write_atomically(path.with_name(f"sha256-{hashlib.sha256(old).hexdigest()}"), old)

    def _manifest_files(self) -> list[Path]:
        return sorted(path for path in self._manifests.glob("*/*/*/*") if path.is_file() and not path.name.startswith("."))

    def _key(self, path: Path) -> str:
        host, namespace, model, tag = path.relative_to(self._manifests).parts
        return ModelName(host, namespace, model, tag).key

    def _keep(self, blob: StagedBlob) -> None:
        path = self._blob_path(blob.digest)
        if not path.is_file() or path.stat().st_size != blob.size:
            os.replace(blob.path, path)

    def _references(self, path: Path) -> set[str]:
        try:
            return manifests.references(path.read_bytes())
        except FileNotFoundError:
            return set()
        except msgspec.MsgspecError:
            log.warning("invalid manifest, its blobs are kept: path=%s", path)
            return set()

    def _drop_unused(self, candidates: set[str]) -> None:
        try:
            used = {digest for path in self._manifest_files() for digest in manifests.references(path.read_bytes())}
        except msgspec.MsgspecError as error:
            log.warning("invalid manifest, no blob is removed: folder=%s error=%r", self._manifests, str(error))
            return
        for digest in filter(_DIGEST.fullmatch, candidates - used):
            self._blob_path(digest).unlink(missing_ok=True)
        _sync_folder(self._blobs)

    def _drop_empty_folders(self, folder: Path) -> None:
        while folder != self._manifests and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


class Staging:
    """The files of one pull before they are published. `folder` is on the store's file system. `claim`: the disk space that the
    pull will still use."""

    def __init__(self, store: Store, folder: Path, claim: Claim, opened: ExitStack) -> None:
        self.folder = folder
        self.claim = claim
        self.partials = store.partials
        self._store = store
        self._opened = opened

    def enter(self, resource: AbstractContextManager[T]) -> T:
        """Enters a context that ends with the pull, and learns of its failure."""
        return self._opened.enter_context(resource)

    def write(self, chunks: Iterable[bytes], *, sha256: str = "") -> StagedBlob:
        """Writes a file and hashes it. Raises InvalidModelFile if its digest is not `sha256`, Unavailable if the disk is
        full."""
        digest = hashlib.sha256()
        path = self._new_path()
        with disk_errors(self.folder), path.open("xb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
                self.claim.spend(len(chunk))
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        if sha256 and digest.hexdigest() != sha256:
            raise InvalidModelFile(
                f"digest mismatch, file must be downloaded again: want sha256:{sha256}, got sha256:{digest.hexdigest()}"
            )
        return StagedBlob(path, f"sha256:{digest.hexdigest()}", size)

    def reuse(self, digest: str) -> StagedBlob | None:
        """A hard link to a blob of the store, which survives a deletion of the blob. None if the store does not have it."""
        path = self._new_path()
        try:
            os.link(self._store.blob(digest), path)
        except (NotFound, OSError):
            return None
        return StagedBlob(path, digest, path.stat().st_size)

    def _new_path(self) -> Path:
        return self.folder / f"blob-{secrets.token_hex(8)}"


def _lock(path: Path) -> TextIO:
    """A file that holds the lock until it is closed or this process ends. Raises Conflict if another process holds it."""
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read(32).strip()
        lock.close()
        raise Conflict(f"the store {path.parent} is in use by another node agent (process {holder or 'unknown'})") from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path), partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
