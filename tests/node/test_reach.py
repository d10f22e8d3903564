"""Where pulls from URLs may connect to, and what they send there."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.node.downloads.addresses import AllowedHosts
from services.node.store import Store
from services.protocol.errors import BadRequest, Unavailable
from tests.doubles.file_server import FileServer, serve_file
from tests.node.downloading import UrlPuller, padded

NOT_PUBLIC = "is not a public address; if models may come from there, the operator lists it in CORRAL_SOURCE_HOSTS"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def files(tiny_gguf: Path) -> Iterator[FileServer]:
    with serve_file(padded(tiny_gguf, 10_000_000)) as files:
        yield files


class Names:
    """A DNS whose answers change. Names that it does not know are resolved as usual."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self._resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: str, *args: Any, **options: Any) -> list[Any]:
        answers = self.answers.get(host)
        if not answers:
            return list(self._resolve(host, *args, **options))
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [entry for address in addresses for entry in self._resolve(address, *args, **options)]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_this_machine_cannot_be_reached(store: Store, files: FileServer, host: str) -> None:
    puller = UrlPuller(store, hosts=AllowedHosts())
    with pytest.raises(BadRequest, match=NOT_PUBLIC):
        puller(files.url.replace("127.0.0.1", host))
    assert files.asked == []


def test_not_by_a_redirect_either(store: Store, files: FileServer) -> None:
    files.redirect = files.url
    with pytest.raises(BadRequest, match=f"127.0.0.1 {NOT_PUBLIC}"):
        UrlPuller(store, hosts=AllowedHosts.parse("localhost"))(files.url.replace("127.0.0.1", "localhost"))
    assert len(files.asked) == 1


def test_not_by_a_name_that_changes_its_address(store: Store, files: FileServer, names: Names) -> None:
    names.answers["rebound.example"] = [["127.0.0.1"], ["127.0.0.2"]]
    with pytest.raises(BadRequest, match=rf"rebound.example \(127.0.0.2\) {NOT_PUBLIC}"):
        UrlPuller(store, hosts=AllowedHosts.parse("127.0.0.1"))(files.url.replace("127.0.0.1", "rebound.example"))


def test_of_several_addresses_those_that_may_be_reached(store: Store, files: FileServer, names: Names) -> None:
    names.answers["several.example"] = [["10.255.255.1", "127.0.0.1"]]
    UrlPuller(store, hosts=AllowedHosts.parse("127.0.0.1"))(files.url.replace("127.0.0.1", "several.example"))
    assert files.headers_seen[0]["host"].startswith("several.example:")


def test_nothing_secret_is_sent_or_said(store: Store, files: FileServer) -> None:
    puller = UrlPuller(store)
    files.statuses.extend([503] * 1000)
    with pytest.raises(Unavailable) as failed:
        puller(f"{files.url}?signature=0")
    assert failed.value.message.startswith(files.url + "?...: the server answered 503")
    assert {name for headers in files.headers_seen for name in headers} <= {
        "host",
        "accept",
        "accept-encoding",
        "connection",
        "range",
        "user-agent",
    }


def test_a_proxy_is_used(store: Store, files: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", files.url.removesuffix("/model.gguf"))
    puller = UrlPuller(store, hosts=AllowedHosts())
    puller("http://files.example/model.gguf")
    assert {asked.path for asked in files.asked} == {"http://files.example/model.gguf"}
    for host in ("127.0.0.1", "169.254.169.254", "localhost", "LOCALHOST.", "127.1", "2130706433", "[::1]"):
        with pytest.raises(BadRequest, match=NOT_PUBLIC):
            puller(f"http://{host}/model.gguf")


def test_hosts_without_a_proxy(store: Store, files: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    UrlPuller(store)(files.url)


@pytest.fixture
def secure_files(files: FileServer, tmp_path: Path) -> tuple[FileServer, Path]:
    """The files by HTTPS, and the authority's certificate."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    files.secure(context)
    return files, certificate


def test_a_private_authority(store: Store, secure_files: tuple[FileServer, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    files, certificate = secure_files
    url = files.url.replace("http://127.0.0.1", "https://localhost")
    with pytest.raises(
        Unavailable, match="the certificate of localhost is not trusted: self-signed certificate; SSL_CERT_FILE"
    ):
        UrlPuller(store)(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    UrlPuller(store)(url)


def test_a_redirect_does_not_leave_https(
    store: Store, secure_files: tuple[FileServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, certificate = secure_files
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    files.redirect = files.url
    with pytest.raises(BadRequest, match="redirects to an address that is not https"):
        UrlPuller(store)(files.url.replace("http://127.0.0.1", "https://localhost"))
