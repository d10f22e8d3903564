"""What servers answer, and what becomes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.node.downloads.answers import Verdict, retry_after_s, size_of, validator_of, verdict, verdict_on_whole
from services.node.downloads.ranges import Range

PART = Range(100, 200)


def content_range(text: str, **others: str) -> dict[str, str]:
    return {"content-range": text} | {name.replace("_", "-"): value for name, value in others.items()}


@pytest.mark.parametrize(
    ("status", "headers", "wanted"),
    [
        (206, content_range("bytes 100-199/1000"), Verdict.TAKE),
        (206, content_range("bytes 100-150/1000"), Verdict.TAKE),
        (206, content_range("bytes 100-199/1000", etag='"1"'), Verdict.TAKE),
        (206, content_range("bytes 100-199/1000", etag='"2"'), Verdict.START_OVER),
        (206, content_range("bytes 100-199/1001"), Verdict.START_OVER),
        (206, content_range("bytes 100-200/1000"), Verdict.RETRY),
        (206, content_range("bytes 99-199/1000"), Verdict.RETRY),
        (206, content_range("bytes 0-99/1000"), Verdict.RETRY),
        (206, content_range("bytes 100-99/1000"), Verdict.RETRY),
        (206, content_range("bytes 100-199/*"), Verdict.RETRY),
        (206, {"content-type": "multipart/byteranges"}, Verdict.RETRY),
        (206, content_range("bytes 100-199/1000", content_encoding="gzip"), Verdict.REFUSE),
        (200, {}, Verdict.START_OVER),
        (416, {}, Verdict.START_OVER),
        (302, {}, Verdict.RESOLVE),
        (403, {}, Verdict.RESOLVE),
        (404, {}, Verdict.RESOLVE),
        (429, {}, Verdict.RETRY),
        (503, {}, Verdict.RETRY),
        (204, {}, Verdict.REFUSE),
        (501, {}, Verdict.REFUSE),
    ],
)
def test_an_answer_to_a_part(status: int, headers: dict[str, str], wanted: Verdict) -> None:
    assert verdict(PART, 1000, '"1"', status, headers) is wanted


@pytest.mark.parametrize(
    ("status", "headers", "wanted"),
    [
        (200, {"content-length": "1000", "etag": '"1"'}, Verdict.TAKE),
        (200, {"content-length": "1000"}, Verdict.TAKE),
        (200, {"content-length": "1000", "etag": '"2"'}, Verdict.START_OVER),
        (200, {"content-length": "999"}, Verdict.START_OVER),
        (200, {}, Verdict.START_OVER),
        (200, {"content-length": "1000", "content-encoding": "br"}, Verdict.REFUSE),
        (503, {}, Verdict.RETRY),
    ],
)
def test_an_answer_with_the_whole_file(status: int, headers: dict[str, str], wanted: Verdict) -> None:
    assert verdict_on_whole(1000, '"1"', status, headers) is wanted


@given(st.integers(100, 599), st.dictionaries(st.sampled_from(["content-range", "etag", "content-length"]), st.text()))
def test_no_answer_is_taken_unless_it_has_the_part(status: int, headers: dict[str, str]) -> None:
    if verdict(PART, 1000, "", status, headers) is Verdict.TAKE:
        assert status == 206
        assert headers["content-range"].startswith("bytes 100-")
    size_of(status, headers)


def test_validators() -> None:
    assert validator_of({"etag": '"a"', "last-modified": "yesterday"}) == '"a"'
    assert validator_of({"etag": 'W/"a"', "last-modified": "yesterday"}) == "yesterday"
    assert validator_of({}) == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("0", 0.0), ("86400", 60.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("-1", 0.0), ("", 0.0)],
)
def test_how_long_a_server_asks_to_wait(text: str, seconds: float) -> None:
    assert retry_after_s({"retry-after": text}) == seconds
