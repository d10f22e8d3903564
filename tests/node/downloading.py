"""Pulls from a web server on loopback, in this process."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from services.node.downloads.addresses import AllowedHosts
from services.node.downloads.download import Patience
from services.node.downloads.downloads import Downloads
from services.node.downloads.rate import RateLimit
from services.node.downloads.web import Web
from services.node.progress import Progress
from services.node.pull import pull
from services.node.sources import Sources
from services.node.store import Store
from services.protocol.jobs import JobProgress, Pull, PulledModel

NAME = "registry.ollama.ai/library/tiny:latest"
LOOPBACK = AllowedHosts.parse("127.0.0.0/8")
MIB = 1024**2


def padded(path: Path, size: int) -> bytes:
    """The GGUF, followed by bytes that belong to no tensor, which readers ignore."""
    data = path.read_bytes()
    return data + random.Random(0).randbytes(size - len(data))


class UrlPuller:
    """Pulls with little patience."""

    def __init__(self, store: Store, *, hosts: AllowedHosts = LOOPBACK, bytes_per_s: int = 0, stall_s: float = 5.0) -> None:
        self.store = store
        self.lines: list[JobProgress] = []
        self.stopping = threading.Event()
        self.cancelled = threading.Event()
        patience = Patience(tries=4, wait_s=0.01, longest_wait_s=0.05)
        downloads = Downloads(Web(hosts, stall_s=stall_s), RateLimit(bytes_per_s), patience)
        self._sources = Sources(downloads, pip_environment={}, import_paths=())

    def __call__(self, url: str, name: str = NAME) -> PulledModel:
        self.lines.clear()
        progress = Progress("job", self.lines.append, stopping=self.stopping, cancelled=self.cancelled)
        return pull(Pull("job", url, name), self.store, progress, self._sources)

    @property
    def partials(self) -> list[Path]:
        return sorted((self.store.root / ".partial").glob("*.data"))
