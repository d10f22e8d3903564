"""What a server's answer to the request for a part means. Pure."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping

from services.node.downloads.ranges import Range

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")

#: Signed URLs expire with one of these, depending on the object store.
_EXPIRED = (400, 401, 403, 404, 410)
_WHOLE_OR_CHANGED = (200, 416)
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)

#: The longest wait that a server may ask for.
RETRY_AFTER_LIMIT_S = 60.0


class Verdict(enum.Enum):
    """`TAKE`: the body has the part, or its beginning. `START_OVER`: it is another file now, or the server ignores ranges.
    `RESOLVE`: the URL does not work any more. `RETRY`: the same request may succeed later. `REFUSE`: it never will."""

    TAKE = enum.auto()
    START_OVER = enum.auto()
    RESOLVE = enum.auto()
    RETRY = enum.auto()
    REFUSE = enum.auto()


def verdict(part: Range, size: int, validator: str, status: int, headers: Mapping[str, str]) -> Verdict:
    """`size` and `validator` are those of the file when the download began. Names of headers are in lower case."""
    if status == 206:
        return _of_part(part, size, validator, headers)
    if status in _WHOLE_OR_CHANGED:
        return Verdict.START_OVER
    if status in _EXPIRED or 300 <= status < 400:
        return Verdict.RESOLVE
    return Verdict.RETRY if status in _TEMPORARY else Verdict.REFUSE


def verdict_on_whole(size: int, validator: str, status: int, headers: Mapping[str, str]) -> Verdict:
    """The same for a request without a range, to a server that ignores them."""
    if status != 200:
        return verdict(Range(0, size), size, validator, status, headers)
    if is_encoded(headers):
        return Verdict.REFUSE
    changed = size_of(status, headers) != size or (validator and validator_of(headers) not in ("", validator))
    return Verdict.START_OVER if changed else Verdict.TAKE


def _of_part(part: Range, size: int, validator: str, headers: Mapping[str, str]) -> Verdict:
    if is_encoded(headers):
        return Verdict.REFUSE
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if not match:
        return Verdict.RETRY
    first, last, whole = (int(number) for number in match.groups())
    if whole != size or (validator and validator_of(headers) not in ("", validator)):
        return Verdict.START_OVER
    return Verdict.TAKE if first == part.start and first <= last < part.stop else Verdict.RETRY


def size_of(status: int, headers: Mapping[str, str]) -> int | None:
    """The size of the whole file, from the answer to a request for its beginning. None if the server does not say it."""
    if status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        return int(match[3]) if match else None
    length = headers.get("content-length", "")
    return int(length) if re.fullmatch(r"\d{1,18}", length) else None


def validator_of(headers: Mapping[str, str]) -> str:
    """What is different if the file is: a strong ETag, otherwise the date of its last change, otherwise nothing."""
    etag = headers.get("etag", "")
    return etag if etag.startswith('"') else headers.get("last-modified", "")


def is_encoded(headers: Mapping[str, str]) -> bool:
    """Whether the body is compressed, although the request forbids it. Its bytes are not those of the file."""
    return headers.get("content-encoding", "identity").lower() not in ("identity", "")


def retry_after_s(headers: Mapping[str, str]) -> float:
    """The wait that the server asks for, in seconds; 0 if it asks for none or gives a date."""
    text = headers.get("retry-after", "")
    return min(float(text), RETRY_AFTER_LIMIT_S) if re.fullmatch(r"\d{1,9}", text) else 0.0
