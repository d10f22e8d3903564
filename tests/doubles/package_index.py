"""Builds tiny wheels and serves them like a package index."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Wheelhouse:
    """A folder of wheels. `environment` makes pip look only there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def environment(self) -> dict[str, str]:
        return pip_environment() | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.folder)}

    def add(self, name: str, files: Mapping[str, bytes], *, version: str = "1.0", requires: tuple[str, ...] = ()) -> Path:
        """`files` by path inside the wheel; `{info}` in a path is replaced by the .dist-info folder."""
        distribution = name.replace("-", "_")
        info = f"{distribution}-{version}.dist-info"
        path = self.folder / f"{distribution}-{version}-py3-none-any.whl"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in files.items():
                archive.writestr(member.replace("{info}", info), data)
            archive.writestr(f"{info}/METADATA", metadata + "\nRequires-Dist: not-this-one\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        return path


def pip_environment() -> dict[str, str]:
    """The environment without the machine's pip settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}


class Index:
    """A package index over HTTP. While `gate` is clear, downloads stall after their first half."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.gate = threading.Event()
        self.gate.set()
        self.stalled = threading.Event()
        #: A wrong size that the index reports for a wheel.
        self.claimed_size: int | None = None
        self._port = port

    @property
    def environment(self) -> dict[str, str]:
        return pip_environment() | {"PIP_INDEX_URL": f"http://127.0.0.1:{self._port}/simple"}


@contextmanager
def serve_index(folder: Path) -> Iterator[Index]:
    server = _Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.index
    finally:
        server.index.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.index = Index(folder, self.server_port)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        index = self.server.index
        name = self.path.rstrip("/").rpartition("/")[2]
        if self.path.startswith("/simple/"):
            wheels = [wheel.name for wheel in index.folder.glob(f"{name.replace('-', '_')}-[0-9]*.whl")]
            links = "".join(f'<a href="/files/{wheel}">{wheel}</a>' for wheel in wheels)
            self._answer(200 if wheels else 404, "text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode())
        elif (index.folder / name).is_file():
            self._answer(200, "application/octet-stream", (index.folder / name).read_bytes(), index)
        else:
            self._answer(404, "text/plain", b"")

    def _answer(self, status: int, kind: str, body: bytes, index: Index | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str((index and index.claimed_size) or len(body)))
        self.end_headers()
        try:
            self.wfile.write(body[: len(body) // 2])
            if index and not index.gate.is_set():
                index.stalled.set()
                index.gate.wait()
            self.wfile.write(body[len(body) // 2 :])
        except OSError:
            self.close_connection = True

    def log_message(self, *_args: object) -> None:
        pass
