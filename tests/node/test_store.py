"""The model store: complete files, shared blobs, and deletion of what is unused."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from services.node import manifests
from services.node.manifests import MODEL_TYPE
from services.node.store import Store
from services.protocol.errors import BadRequest, Conflict, InvalidModelFile, NotFound, Unavailable
from services.protocol.jobs import Layer
from services.protocol.names import ModelName

NAME = ModelName.parse("tiny")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(store: Store, name: ModelName, *blobs: bytes) -> set[str]:
    """Publishes a model with these blobs, the first of which is its config. Returns their digests."""
    with store.staging() as staging:
        staged = [staging.write([blob]) for blob in blobs]
        layers = tuple(Layer(MODEL_TYPE, blob.digest, blob.size) for blob in staged)
        manifest = (
            f'{{"schemaVersion":2,"config":{entry(layers[0])},"layers":[{",".join(entry(layer) for layer in layers[1:])}]}}'
        )
        store.publish(name, manifest, staged)
    return {blob.digest for blob in staged}


def entry(layer: Layer) -> str:
    return f'{{"digest":"{layer.digest}","size":{layer.size}}}'


def digests(store: Store) -> set[str]:
    return {blob.digest for blob in store.blobs()}


def files(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def test_the_layout_is_ollamas(store: Store) -> None:
    put(store, ModelName.parse("hf.co/org/repo:Q4_K_M"), b"config", b"model")
    assert files(store) == sorted(
        [
            ".lock",
            f"blobs/sha256-{sha256(b'config')}",
            f"blobs/sha256-{sha256(b'model')}",
            "manifests/hf.co/org/repo/Q4_K_M",
        ]
    )
    assert store.blob(f"sha256:{sha256(b'model')}").read_bytes() == b"model"


def test_models_share_blobs(store: Store) -> None:
    put(store, ModelName.parse("a"), b"config a", b"weights")
    kept = put(store, ModelName.parse("b"), b"config b", b"weights")
    store.delete(ModelName.parse("a"))
    assert digests(store) == kept
    store.delete(ModelName.parse("b"))
    assert digests(store) == set()
    assert files(store) == [".lock"]
    assert list((store.root / "manifests").iterdir()) == []


def test_deleting_twice_does_nothing(store: Store) -> None:
    kept = put(store, ModelName.parse("b"), b"config", b"weights")
    store.delete(NAME)
    store.delete(NAME)
    assert digests(store) == kept


def manifest_digest(store: Store, name: ModelName) -> str:
    return sha256(store.manifest(name).encode())


def test_a_replaced_model_stays_until_its_version_is_deleted(store: Store) -> None:
    old = put(store, NAME, b"config", b"old", b"shared")
    version = manifest_digest(store, NAME)
    new = put(store, NAME, b"config", b"new", b"shared")
    assert digests(store) == old | new
    assert manifest_digest(store, NAME.kept(version)) == version
    store.delete(NAME.kept(version))
    assert digests(store) == new
    assert len(files(store)) == 1 + len(new) + 1


def test_deleting_a_version_deletes_every_tag_that_names_it(store: Store) -> None:
    """On a node that never pulled the newer version, the tag names the older one."""
    other = put(store, ModelName.parse("other"), b"config", b"weights")
    put(store, NAME, b"config", b"weights")
    version = manifest_digest(store, NAME)
    store.delete(ModelName.parse("other2").kept(version))
    assert store.manifest(NAME)
    store.delete(NAME.kept(version))
    with pytest.raises(NotFound):
        store.manifest(NAME)
    assert digests(store) == other


def test_the_same_model_is_stored_once(store: Store) -> None:
    blobs = put(store, NAME, b"config", b"weights")
    put(store, NAME, b"config", b"weights")
    assert len(files(store)) == 1 + len(blobs) + 1


def test_names_are_case_insensitive(store: Store) -> None:
    put(store, ModelName.parse("Tiny:Q4"), b"config", b"old")
    old = manifest_digest(store, ModelName.parse("tiny:q4"))
    put(store, ModelName.parse("tiny:q4"), b"config", b"new")
    assert store.manifest(ModelName.parse("TINY:Q4"))
    assert [Path(file).name for file in files(store)[-2:]] == ["Q4", f"sha256-{old}"]


def test_a_wrong_checksum_leaves_no_files(store: Store) -> None:
    with store.staging() as staging, pytest.raises(InvalidModelFile, match=f"want sha256:{'0' * 64}, got sha256:"):
        staging.write([b"data"], sha256="0" * 64)
    assert files(store) == [".lock"]


def test_a_failure_while_staging_leaves_no_files(store: Store) -> None:
    def fail() -> None:
        with store.staging() as staging:
            staging.write([b"data"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert files(store) == [".lock"]
    assert list((store.root / ".staging").iterdir()) == []


def test_a_manifest_that_cannot_be_written_leaves_no_blobs(store: Store) -> None:
    (store.root / "manifests" / "registry.ollama.ai").write_text("in the way")
    with pytest.raises(OSError, match="registry.ollama.ai"):
        put(store, NAME, b"config", b"weights")
    assert digests(store) == set()


def test_a_reused_blob_survives_a_concurrent_deletion(store: Store) -> None:
    put(store, NAME, b"config", b"weights")
    with store.staging() as staging:
        blob = staging.reuse(f"sha256:{sha256(b'weights')}")
        assert blob
        store.delete(NAME)
        store.publish(NAME, f'{{"config":{{"digest":"{blob.digest}"}},"layers":[]}}', [blob])
    assert store.blob(blob.digest).read_bytes() == b"weights"


def test_one_agent_per_store(store: Store) -> None:
    with pytest.raises(Conflict, match=rf"{store.root} is in use by another node agent \(process {os.getpid()}\)"):
        Store(store.root)


def test_the_lock_is_not_inherited_and_ends_with_the_agent(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from pathlib import Path; from services.node.store import Store\n"
        f"Store(Path({str(tmp_path)!r}))\n"
        "print(subprocess.Popen(['sleep', '30'], stdout=-3, stderr=-3).pid)"
    )
    sleeper = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    try:
        Store(tmp_path).close()
    finally:
        os.kill(sleeper, 9)


def test_leftovers_of_a_crash_are_removed(store: Store) -> None:
    kept = put(store, NAME, b"config", b"weights")
    store.close()
    (store.root / ".staging" / "dead").mkdir()
    (store.root / ".staging" / "dead" / "half").write_bytes(b"half")
    (store.root / "blobs" / f"sha256-{sha256(b'orphan')}").write_bytes(b"orphan")
    again = Store(store.root)
    assert digests(again) == kept
    assert list((store.root / ".staging").iterdir()) == []
    again.close()


def test_no_blob_is_deleted_while_a_manifest_is_unreadable(store: Store) -> None:
    held = put(store, ModelName.parse("other"), b"config", b"weights")
    path = store.root / "manifests" / "registry.ollama.ai" / "library" / "broken" / "latest"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    store.delete(ModelName.parse("other"))
    assert digests(store) == held


@pytest.mark.parametrize(
    "digest", ["sha256:../../etc/passwd", "sha256:" + "A" * 64, "sha256-" + "0" * 64, "", "sha256:" + "0" * 63]
)
def test_digests_with_paths_are_refused(store: Store, digest: str) -> None:
    with pytest.raises(NotFound):
        store.blob(digest)


def test_a_manifest_cannot_delete_files_outside_the_store(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    path = store.root / "manifests" / "registry.ollama.ai" / "library" / "evil" / "latest"
    path.parent.mkdir(parents=True)
    path.write_text('{"config":{"digest":"sha256:../../outside"},"layers":[]}')
    store.delete(ModelName.parse("evil"))
    assert outside.read_text() == "mine"
    assert not path.exists()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="a./:\\-_~%A0é\0 ", max_size=30))
def test_any_name_stays_inside_the_store(store: Store, text: str) -> None:
    try:
        name = ModelName.parse(text)
    except BadRequest:
        return
    put(store, name, b"config")
    (path,) = (store.root / "manifests").glob("*/*/*/*")
    assert path.resolve().is_relative_to(store.root.resolve())
    store.delete(name)


def test_a_full_disk_is_an_error_with_needed_and_free_space(store: Store) -> None:
    needed = r"not enough disk space in .*: 1000000000000.0 MB needed, [\d.]+ MB free .*; [\d.]+ MB are missing"
    with store.staging() as staging, pytest.raises(Unavailable, match=needed):
        staging.claim.set(10**18)


def test_the_manifest_of_a_file_is_reproducible(tiny_gguf: Path) -> None:
    from services.weights import gguf

    model = gguf.read(tiny_gguf)
    layers = (Layer(MODEL_TYPE, "sha256:" + "1" * 64, 5),)
    first, second = manifests.build(model, layers), manifests.build(model, layers)
    assert first == second
    assert manifests.references(first.text.encode()) == {first.config.digest, layers[0].digest}
    assert first.config.digest == f"sha256:{sha256(first.config_text.encode())}"


@pytest.mark.parametrize(
    ("count", "text"),
    [(134_515_008, "134.52M"), (3_200_000_000, "3.2B"), (7_000_000_000, "7B"), (1_000_000, "1M"), (12_345, "12K"), (7, "7")],
)
def test_parameter_counts_have_ollamas_format(count: int, text: str) -> None:
    assert manifests.human_number(count) == text


BLOBS = st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), min_size=1, max_size=3)
NAMES = st.sampled_from(["x", "y", "z"]).map(ModelName.parse)


class StoreMachine(RuleBasedStateMachine):
    """Compares the store with a simple model: each name has a set of blobs."""

    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(self.root)
        self.models: dict[ModelName, set[str]] = {}
        self.kept: dict[ModelName, set[str]] = {}
        for name in ("x", "y", "z"):
            self.store.delete(ModelName.parse(name))
        for path in self.root.glob("manifests/*/*/*/*"):
            self.store.delete(ModelName(*path.relative_to(self.root / "manifests").parts))

    def teardown(self) -> None:
        self.store.close()

    @rule(name=NAMES, blobs=BLOBS)
    def publish(self, name: ModelName, blobs: list[bytes]) -> None:
        before = self.store.manifest(name) if name in self.models else ""
        old = self.models.get(name)
        self.models[name] = put(self.store, name, *blobs)
        if old and self.store.manifest(name) != before:
            self.kept[name.kept(sha256(before.encode()))] = old

    @rule(data=st.data())
    def delete_version(self, data: st.DataObject) -> None:
        if not self.kept:
            return
        version = data.draw(st.sampled_from(sorted(self.kept, key=lambda name: name.key)))
        self.store.delete(version)
        del self.kept[version]
        for name in [name for name in self.models if name.model == version.model]:
            if not (self.root / "manifests" / name.host / name.namespace / name.model / name.tag).exists():
                del self.models[name]

    @rule(name=NAMES)
    def delete(self, name: ModelName) -> None:
        self.store.delete(name)
        self.models.pop(name, None)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.root)

    @invariant()
    def holds_exactly_the_blobs_of_its_models(self) -> None:
        assert digests(self.store) == set().union(*self.models.values(), *self.kept.values())
        for blob in self.store.blobs():
            assert sha256(self.store.blob(blob.digest).read_bytes()) == blob.digest.removeprefix("sha256:")


def test_any_sequence_of_changes_keeps_exactly_the_needed_blobs(tmp_path: Path) -> None:
    StoreMachine.root = tmp_path
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=20, stateful_step_count=10, deadline=None))
