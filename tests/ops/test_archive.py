"""`ops/backup.sh` and `ops/restore.sh` with a stand-in for Docker: the contents of an archive, and refusals before anything is
changed. tests/compose/operations.py backs up and restores a real cluster."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCHEMA = "2026_11_22_catalog"

#: Answers like Compose, keeps a database in a file and a store in a folder, and logs its calls.
DOCKER = """#!/usr/bin/env bash
echo "$*" >>"$SITE/calls"
case "$*" in
    *"ps --quiet"*) cat "$SITE/running" ;;
    *"config --format json"*) printf '{\\n  "name": "corral",\\n}\\n' ;;
    "compose images"*) echo '[{"Repository":"corral","Tag":"v7"}]' ;;
    *pg_dump*) cat "$SITE/database" ;;
    *psql*) cat "$SITE/schema" ;;
    *pg_restore*) [ ! -e "$SITE/broken" ] || { echo "pg_restore: error: out of order" >&2; exit 1; }; cat >"$SITE/database" ;;
    *"--entrypoint sh node"*) command=${@: -1:1}; eval "${command//\\/var\\/lib\\/corral/$SITE}" ;;
    *"--entrypoint tar node"*) shift 10; tar "${@//\\/var\\/lib\\/corral/$SITE}" ;;
    "volume ls"*) [ ! -e "$SITE/has-data" ] || echo corral_postgres ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with secrets and a cluster of the stand-in."""
    for folder in ("ops", "bin", "migrations/versions", "site/models/blobs", "site/models/manifests/host/library/model"):
        (tmp_path / folder).mkdir(parents=True)
    for script in ("backup.sh", "restore.sh", "secrets.sh"):
        shutil.copy(ROOT / "ops" / script, tmp_path / "ops")
    write_script(tmp_path / "ops" / "cluster.sh", '#!/usr/bin/env bash\necho "cluster $*" >>"$SITE/calls"\n')
    write_script(tmp_path / "bin" / "docker", DOCKER)
    shutil.copy(ROOT / ".env.example", tmp_path)
    (tmp_path / "migrations" / "versions" / "first.py").write_text(f'revision = "{SCHEMA}"\n')
    site = tmp_path / "site"
    (site / "database").write_bytes(b"PGDMP" + bytes(range(256)))
    (site / "schema").write_text(f"{SCHEMA}\n")
    (site / "running").write_text("postgres\n")
    (site / "models" / "blobs" / "sha256-abc").write_bytes(b"GGUF" * 1000)
    (site / "models" / "blobs" / ".sha256-def.partial").write_bytes(b"half")
    (site / "models" / "manifests" / "host" / "library" / "model" / "tag").write_text("{}")
    assert run(tmp_path, "secrets.sh").returncode == 0
    return tmp_path


def write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def run(checkout: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CORRAL_", "COMPOSE_"))}
    environment |= {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "SITE": str(checkout / "site")}
    command = [str(checkout / "ops" / script), *arguments]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd=checkout
    )


def backup(checkout: Path, *options: str) -> Path:
    (checkout / "backups").mkdir(exist_ok=True)
    done = run(checkout, "backup.sh", *options, str(checkout / "backups"))
    assert (done.returncode, done.stderr) == (0, "")
    (file,) = (checkout / "backups").iterdir()
    return file


def lose_everything(checkout: Path) -> None:
    for path in (checkout / "secrets", checkout / "site" / "models"):
        shutil.rmtree(path)
    (checkout / ".env").unlink()
    (checkout / "site" / "database").unlink()
    (checkout / "site" / "running").write_text("")
    (checkout / "site" / "calls").write_text("")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(checkout: Path, *arguments: str, script: str = "restore.sh") -> str:
    """The error message; asserts that nothing was changed."""
    before = {name: contents(checkout / name) for name in ("secrets", "site/models") if (checkout / name).exists()}
    done = run(checkout, script, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert {name: contents(checkout / name) for name in before} == before
    return line.removeprefix("Error: ")


def test_a_restored_backup_is_the_same_cluster(checkout: Path) -> None:
    (checkout / ".env").write_text((checkout / ".env").read_text() + "CORRAL_PORT=8080\n")
    before = {name: contents(checkout / name) for name in ("secrets", "site/models")}
    database = (checkout / "site" / "database").read_bytes()
    file = backup(checkout, "--models")
    lose_everything(checkout)
    (checkout / "site" / "models").mkdir()
    done = run(checkout, "restore.sh", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    del before["site/models"]["blobs/.sha256-def.partial"]
    assert {name: contents(checkout / name) for name in before} == before
    assert (checkout / "site" / "database").read_bytes() == database
    assert "CORRAL_PORT=8080" in (checkout / ".env").read_text()
    assert "CORRAL_DOCKER_GID=\n" not in (checkout / ".env").read_text(), "the socket's group is this machine's"
    assert (checkout / "site" / "calls").read_text().endswith("cluster up\n")


def test_models_are_saved_only_if_requested(checkout: Path) -> None:
    with tarfile.open(backup(checkout), ignore_zeros=True) as archive:
        names = archive.getnames()
    assert names[0] == "manifest"
    assert {"database.dump", "env", "secrets/corral_admin_key"} < set(names)
    assert not [name for name in names if name.startswith("models")]


def test_only_the_owner_can_read_an_archive(checkout: Path) -> None:
    file = backup(checkout)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with tarfile.open(file) as archive:
        assert {member.mode & 0o077 for member in archive if member.isfile()} == {0}
    lose_everything(checkout)
    assert run(checkout, "restore.sh", str(file)).returncode == 0
    assert stat.S_IMODE((checkout / "secrets").stat().st_mode) == 0o700


def test_a_failed_backup_leaves_no_file(checkout: Path) -> None:
    (checkout / "site" / "running").write_text("")
    (checkout / "backups").mkdir()
    error = refusal(checkout, str(checkout / "backups"), script="backup.sh")
    assert error.startswith("the cluster's database is not running")
    assert list((checkout / "backups").iterdir()) == []
    assert refusal(checkout, str(checkout / "nowhere" / "file"), script="backup.sh").startswith("there is no folder")
    assert refusal(checkout, script="backup.sh").startswith("usage: ops/backup.sh")


def test_an_existing_file_is_not_overwritten(checkout: Path) -> None:
    file = backup(checkout)
    assert "already exists" in refusal(checkout, str(file), script="backup.sh")


@pytest.mark.parametrize("where", [0.02, 0.5, 0.9])
def test_a_damaged_archive_is_refused(checkout: Path, where: float) -> None:
    file = backup(checkout, "--models")
    lose_everything(checkout)
    content = bytearray(file.read_bytes())
    with tarfile.open(file, ignore_zeros=True) as archive:
        members = [member for member in archive if member.isfile() and member.size]
    member = members[int(where * len(members))]
    content[member.offset_data] ^= 1
    file.write_bytes(content)
    assert "damaged" in refusal(checkout, str(file)) or member.name == "manifest"
    assert not (checkout / "secrets").exists()


def test_a_truncated_archive_is_refused(checkout: Path) -> None:
    file = backup(checkout, "--models")
    lose_everything(checkout)
    content = file.read_bytes()
    for length in (0, 100, 2000, len(content) // 2):
        file.write_bytes(content[:length])
        assert str(file) in refusal(checkout, str(file))
    assert (checkout / "site" / "calls").read_text() == "", "nothing was started"


def test_a_file_that_is_not_a_backup_is_refused(checkout: Path) -> None:
    assert refusal(checkout, str(checkout / "nowhere.tar")).startswith("there is no archive")
    stranger = checkout / "stranger.tar"
    with tarfile.open(stranger, "w") as archive:
        archive.add(checkout / ".env", "env")
    assert refusal(checkout, str(stranger)) == f"{stranger} is not an archive of ops/backup.sh"


def test_an_archive_with_other_members_is_refused(checkout: Path) -> None:
    file = backup(checkout)
    with tarfile.open(file, "a") as archive:
        archive.add(checkout / ".env", "secrets/../../escaped")
    assert "contains a member that no backup has" in refusal(checkout, str(file))


def test_a_newer_schema_is_refused(checkout: Path) -> None:
    (checkout / "site" / "schema").write_text("2031_01_01_future\n")
    file = backup(checkout)
    lose_everything(checkout)
    assert "newer than this release (schema 2031_01_01_future, of release v7)" in refusal(checkout, str(file))


def test_a_cluster_is_not_replaced_without_replace(checkout: Path) -> None:
    file = backup(checkout)
    assert refusal(checkout, str(file)).startswith("a cluster is running here")
    (checkout / "site" / "running").write_text("")
    (checkout / "site" / "has-data").touch()
    assert refusal(checkout, str(file)).startswith("the data of a cluster is here")
    (checkout / "site" / "has-data").unlink()
    (checkout / ".env").write_text("CORRAL_PORT=80\n")
    assert refusal(checkout, str(file)).startswith(".env differs from the backup")
    (checkout / ".env").unlink()
    (checkout / "secrets" / "grafana_password").write_text("another\n")
    assert refusal(checkout, str(file)).startswith("./secrets/grafana_password differs from the backup")
    assert run(checkout, "restore.sh", "--replace", str(file)).returncode == 0
    assert (checkout / "secrets" / "grafana_password").read_text() != "another\n"


def test_a_failed_restore_leaves_nothing(checkout: Path) -> None:
    file = backup(checkout)
    (checkout / "site" / "running").write_text("")
    before = contents(checkout / "secrets")
    (checkout / "site" / "broken").touch()
    error = refusal(checkout, str(file))
    assert error == "the database cannot be restored: pg_restore: error: out of order; the restore was undone"
    assert contents(checkout / "secrets") == before
    assert {stat.S_IMODE(file.stat().st_mode) for file in (checkout / "secrets").iterdir()} == {0o644}
    assert (checkout / "site" / "calls").read_text().endswith("cluster down --volumes\n")
    lose_everything(checkout)
    assert run(checkout, "restore.sh", str(file)).returncode == 1
    assert not (checkout / "secrets").exists()
    assert not (checkout / ".env").exists()
