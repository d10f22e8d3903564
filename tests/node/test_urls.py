"""Pulls from a web server: what arrives is whole, and what fails is tried again or refused with a reason."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.node.store import Store
from services.protocol.errors import BadRequest, InvalidModelFile, NotFound, Unavailable
from services.protocol.jobs import PulledModel
from tests.doubles.file_server import FileServer, serve_file
from tests.node.downloading import MIB, UrlPuller, padded

SIZE = 20 * MIB


@pytest.fixture(scope="module")
def data(tiny_gguf: Path) -> bytes:
    return padded(tiny_gguf, SIZE)


@pytest.fixture
def files(data: bytes) -> Iterator[FileServer]:
    with serve_file(data) as files:
        yield files


@pytest.fixture
def puller(store: Store) -> UrlPuller:
    return UrlPuller(store)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def holds(puller: UrlPuller, pulled: PulledModel, data: bytes) -> bool:
    return puller.store.blob(pulled.layers[0].digest).read_bytes() == data


def test_from_a_url_in_parts(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    pulled = puller(files.url)
    assert holds(puller, pulled, data)
    assert len(files.bodies) == 5, "parts of 4 MiB"
    assert files.sent == SIZE + 4, "each byte once, and the first four to see what it is"
    bars = [line for line in puller.lines if line.total]
    assert (bars[-1].completed, bars[-1].total) == (SIZE, SIZE)
    steps = list(dict.fromkeys(line.status for line in puller.lines))
    assert steps == ["pulling manifest", bars[0].status, "verifying sha256 digest", "writing manifest"]
    assert puller.partials == []


def test_the_same_url_again_is_not_downloaded(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    puller(files.url)
    sent = files.sent
    assert holds(puller, puller(files.url), data)
    assert files.sent == sent + 4
    files.etag = '"2"'
    files.data = data + b"more"
    assert holds(puller, puller(files.url), data + b"more")


def test_a_file_that_the_store_has_from_elsewhere_is_there_once(puller: UrlPuller, files: FileServer) -> None:
    puller(files.url)
    puller(files.signed_url)
    assert len(puller.store.blobs()) == 2
    assert puller.partials == []


def test_a_known_checksum_is_not_even_asked_for(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    puller(files.url)
    asked = len(files.asked)
    puller(f"http://127.0.0.1:1/gone.gguf#sha256={digest(data)}")
    assert len(files.asked) == asked


def test_a_server_without_ranges(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    files.ranges = False
    files.cuts.extend([SIZE // 2, 0])
    assert holds(puller, puller(files.url), data)


def test_a_server_that_stops_answering_ranges(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    """It answered the first request with a range, and now sends the whole file: the bytes must not be appended."""
    files.cuts.extend([MIB] * 3)

    def answered() -> None:
        files.ranges = False

    files.after_beginning = answered
    assert holds(puller, puller(f"{files.url}#sha256={digest(data)}"), data)


def test_broken_connections(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    files.cuts.extend([MIB, 0, 3 * MIB, 1, 17])
    assert holds(puller, puller(files.url), data)
    assert files.sent < SIZE + MIB, "what arrived is not fetched again"


def test_errors_that_pass(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    files.statuses.extend([503, 429, 500, 502])
    assert holds(puller, puller(files.url), data)


def test_errors_that_stay(puller: UrlPuller, files: FileServer) -> None:
    files.statuses.extend([503] * 1000)
    with pytest.raises(Unavailable, match=r"/model.gguf: the server answered 503, 4 times in a row"):
        puller(files.url)
    assert puller.partials == [], "nothing has arrived"


def test_signatures_that_expire(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    files.signature_uses = 3
    assert holds(puller, puller(files.signed_url), data)
    assert [asked.path for asked in files.asked].count("/signed") >= 2


def test_a_file_that_changes_meanwhile(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    newer = data[:-1] + bytes([data[-1] ^ 1])

    def change() -> None:
        files.data, files.etag = newer, '"2"'

    files.after_bodies[2] = change
    assert holds(puller, puller(files.url), newer)


def test_a_byte_that_is_wrong_once(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    files.flips = 1
    assert holds(puller, puller(f"{files.url}#sha256={digest(data)}"), data)


def test_a_source_with_another_checksum(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    want = "0" * 64
    with pytest.raises(InvalidModelFile, match=f"want sha256:{want}, got sha256:{digest(data)}"):
        puller(f"{files.url}#sha256={want}")
    assert puller.store.blobs() == ()
    assert puller.partials == []


def test_a_part_that_is_not_the_one_asked_for(puller: UrlPuller, files: FileServer) -> None:
    files.claimed_range = f"bytes 1-4/{SIZE}"
    with pytest.raises(Unavailable, match="answered 206, 4 times in a row"):
        puller(files.url)


def test_a_server_that_sends_more_than_it_was_asked_for(puller: UrlPuller, files: FileServer, data: bytes) -> None:
    files.excess = bytes(64 * MIB)
    assert holds(puller, puller(files.url), data)
    assert files.sent < SIZE + 64 * MIB


def test_a_silent_connection_is_asked_again(store: Store, files: FileServer, data: bytes) -> None:
    puller = UrlPuller(store, stall_s=0.5)
    files.gate.clear()

    def resume() -> None:
        files.gate.set()

    files.after_bodies[8] = resume
    assert holds(puller, puller(files.url), data)


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("/nothing.gguf", NotFound, "the server has no such file"),
        ("/model.gguf?signature=old", BadRequest, "the server does not give this file away"),
    ],
)
def test_refusals(puller: UrlPuller, files: FileServer, path: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        puller(files.url.replace("/model.gguf", path))
    assert len(files.asked) == 1


def test_a_page_is_not_a_model(puller: UrlPuller, files: FileServer) -> None:
    files.data = b"<!DOCTYPE html>" + bytes(MIB)
    with pytest.raises(InvalidModelFile, match=r"model.gguf: is not a GGUF file"):
        puller(files.url)
    assert files.bodies == []


def test_a_model_that_lies_is_not_kept(puller: UrlPuller, files: FileServer, tiny_gguf: Path) -> None:
    files.data = tiny_gguf.read_bytes()[:-100]
    with pytest.raises(InvalidModelFile, match="is truncated"):
        puller(files.url)
    assert puller.partials == []
    assert puller.store.blobs() == ()


def test_a_compressed_answer_is_refused(puller: UrlPuller, files: FileServer) -> None:
    files.content_encoding = "gzip"
    with pytest.raises(Unavailable, match="does not give the size"):
        puller(files.url)


def test_no_server(puller: UrlPuller) -> None:
    with pytest.raises(Unavailable, match="the connection to 127.0.0.1 failed"):
        puller("http://127.0.0.1:1/model.gguf")
    with pytest.raises(Unavailable, match="the name nowhere.invalid cannot be resolved"):
        puller("http://nowhere.invalid/model.gguf")
