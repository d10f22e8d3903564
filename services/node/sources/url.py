"""A GGUF file on a web server."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from services.node.downloads.answers import is_encoded, retry_after_s, size_of, validator_of
from services.node.downloads.downloads import Downloads
from services.node.downloads.location import Location
from services.node.downloads.plan import PlannedFile
from services.node.downloads.ranges import Range
from services.node.downloads.web import Answer, Broken, Session
from services.node.model_file import FetchedFile, Role
from services.node.progress import Progress
from services.node.store import Staging
from services.protocol.errors import BadRequest, InvalidModelFile, NotFound, Unavailable
from services.protocol.source_url import SourceUrl

MAX_REDIRECTS = 10

_MAGIC = b"GGUF"


class UrlSource:
    """Raises BadRequest if `source` is no URL that a model can be pulled from."""

    def __init__(self, source: str, downloads: Downloads) -> None:
        self._url = SourceUrl.parse(source)
        self._downloads = downloads

    def fetch(self, staging: Staging, progress: Progress) -> tuple[FetchedFile, ...]:
        return self._downloads.fetch(self, staging, progress)

    async def plan(self, session: Session) -> tuple[PlannedFile, ...]:
        return (PlannedFile(Role.MODEL, UrlFile(self._url.url, self._url.shown, self._url.digest)),)


class UrlFile(NamedTuple):
    """A RemoteFile. It is asked for its first bytes: whether it is a GGUF, its size, and whether the server answers ranges."""

    identity: str
    shown: str
    digest: str

    async def resolve(self, session: Session) -> Location:
        """Follows redirects. Raises NotFound, BadRequest, InvalidModelFile or Unavailable if the server refuses, and Broken."""
        url = self.identity
        for _ in range(MAX_REDIRECTS):
            async with session.get(url, Range(0, len(_MAGIC))) as answer:
                if answer.status in (200, 206):
                    await _require_gguf(answer)
                    return self._location(url, answer)
                if not 300 <= answer.status < 400:
                    raise self._refusal(answer)
                url = self._redirected(url, answer)
        raise Unavailable(f"{self.shown}: more than {MAX_REDIRECTS} redirects")

    def _redirected(self, url: str, answer: Answer) -> str:
        target = urljoin(url, answer.headers.get("location", ""))
        if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
            raise BadRequest(f"{self.shown}: the server redirects to an address that is not https")
        return target

    def _location(self, url: str, answer: Answer) -> Location:
        size = size_of(answer.status, answer.headers)
        if size is None or is_encoded(answer.headers):
            raise Unavailable(f"{self.shown}: the server does not give the size of the file")
        return Location(url, size, validator_of(answer.headers), ranged=answer.status == 206)

    def _refusal(self, answer: Answer) -> Exception:
        match answer.status:
            case 404 | 410:
                return NotFound(f"{self.shown}: the server has no such file (status {answer.status})")
            case 401 | 403 | 407:
                return BadRequest(f"{self.shown}: the server does not give this file away (status {answer.status})")
            case 408 | 425 | 429 | 500 | 502 | 503 | 504:
                return Broken(f"{self.shown}: the server answered {answer.status}", wait_s=retry_after_s(answer.headers))
            case _:
                return Unavailable(f"{self.shown}: the server answered {answer.status}")


async def _require_gguf(answer: Answer) -> None:
    beginning = b""
    async for chunk in answer.chunks():
        beginning += chunk
        if len(beginning) > len(_MAGIC):
            break  # the server sends the whole file
    if not beginning.startswith(_MAGIC):
        raise InvalidModelFile("is not a GGUF file")
