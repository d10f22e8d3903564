"""URLs that models are pulled from: `https://host/path/model.gguf`, with `#sha256=<hex>` if the file's checksum is known."""

from __future__ import annotations

import re
from typing import NamedTuple, Self
from urllib.parse import unquote, urlsplit

from services.protocol.errors import BadRequest

_CHECKSUM = re.compile(r"sha256=([0-9a-fA-F]{64})")


class SourceUrl(NamedTuple):
    """`digest` is `sha256:<hex>`, or empty."""

    url: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises BadRequest if `text` is not such a URL."""
        url, _, fragment = text.partition("#")
        checksum = _CHECKSUM.fullmatch(fragment)
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid or not text.isprintable() or " " in text:
            raise BadRequest(f"invalid source: '{shown(text)}' is not a URL with a host")
        if parts.username is not None:
            raise BadRequest("invalid source: the URL has a password, and sources are stored and shown")
        if fragment and not checksum:
            raise BadRequest(f"invalid source: '#{fragment[:80]}' is not #sha256= and 64 hexadecimal digits")
        return cls(url, f"sha256:{checksum[1].lower()}" if checksum else "")

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it."""
        return shown(self.url)

    @property
    def file_name(self) -> str:
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def shown(source: str) -> str:
    """The source for messages and for the catalogue: of a URL, without password and query, which often has a signature."""
    if "://" not in source:
        return source
    address, hash_sign, fragment = source.partition("#")
    address, question, _ = address.partition("?")
    scheme, separator, rest = address.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}{'?...' if question else ''}{hash_sign}{fragment}"
