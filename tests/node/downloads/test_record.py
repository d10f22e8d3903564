"""Records are written by crashes and read by strangers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.node.downloads.location import Location
from services.node.downloads.ranges import Range
from services.node.downloads.record import Record, decode, key_of, resumed, verified_digest

HERE = Location("http://host/file", 100, '"1"', ranged=True)
HALF = Record(100, '"1"', ((0, 50),))


def test_a_record_survives_the_disk() -> None:
    assert decode(HALF.encode()) == HALF


@given(st.binary(max_size=200))
def test_anything_else_is_no_record(data: bytes) -> None:
    decode(data)


@given(st.integers(0, 1000), st.lists(st.tuples(st.integers(-10, 1010), st.integers(-10, 1010)), max_size=5))
def test_a_record_lists_only_bytes_of_the_file(size: int, done: list[tuple[int, int]]) -> None:
    record = decode(Record(size, "", tuple(done)).encode())
    if record:
        flat = [bound for one in record.done for bound in one]
        assert flat == sorted(set(flat))
        assert all(0 <= bound <= size for bound in flat)


def test_when_a_download_resumes() -> None:
    assert resumed(HALF, HERE, digest="") == (Range(0, 50),)
    assert resumed(None, HERE, digest="") == ()
    assert resumed(HALF, HERE._replace(size=101), digest="") == ()
    assert resumed(HALF, HERE._replace(validator='"2"'), digest="") == ()
    assert resumed(HALF, HERE._replace(validator='"2"'), digest="sha256:0") == (Range(0, 50),)
    assert resumed(HALF, HERE._replace(ranged=False), digest="sha256:0") == ()
    unknown = Record(100, "", ((0, 50),))
    assert resumed(unknown, HERE._replace(validator=""), digest="") == ()
    assert resumed(unknown, HERE._replace(validator=""), digest="sha256:0") == (Range(0, 50),)


def test_when_a_file_is_known() -> None:
    whole = Record(100, '"1"', ((0, 100),), "sha256:0")
    assert verified_digest(whole, HERE) == "sha256:0"
    assert verified_digest(whole, HERE._replace(validator='"2"')) == ""
    assert verified_digest(whole, HERE._replace(size=99)) == ""
    assert verified_digest(Record(100, "", (), "sha256:0"), HERE._replace(validator="")) == ""
    assert verified_digest(None, HERE) == ""


def test_downloads_of_one_digest_share_a_partial() -> None:
    assert key_of("https://a/x", "sha256:0") == key_of("https://b/y", "sha256:0")
    assert key_of("https://a/x", "") != key_of("https://a/x?token=1", "")
    assert "token" not in key_of("https://a/x?token=1", "")
