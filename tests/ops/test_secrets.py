"""`ops/secrets.sh` in a separate folder."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FILES = {
    *("postgres_password", "corral_database_url", "redis_auth", "corral_redis_url"),
    *("corral_registry_token", "corral_admin_key", "grafana_password"),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "ops").mkdir()
    shutil.copy(ROOT / "ops" / "secrets.sh", tmp_path / "ops")
    shutil.copy(ROOT / ".env.example", tmp_path)
    return tmp_path


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")}
    command = [str(checkout / "ops" / "secrets.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def contents(checkout: Path) -> dict[str, str]:
    return {file.name: file.read_text().strip() for file in (checkout / "secrets").iterdir()}


def test_secrets_are_created_once(checkout: Path) -> None:
    done = run(checkout)
    assert (done.returncode, done.stderr) == (0, "")
    made = contents(checkout)
    assert set(made) == FILES
    assert not any(value.split()[-1] in done.stdout for value in made.values())
    assert run(checkout).stdout == ""
    assert contents(checkout) == made
    assert run(checkout, "check").returncode == 0


def test_secrets_match_each_other_and_are_long(checkout: Path) -> None:
    run(checkout)
    made = contents(checkout)
    assert f":{made['postgres_password']}@postgres:5432/" in made["corral_database_url"]
    assert f":{made['redis_auth'].removeprefix('requirepass ')}@redis:6379/" in made["corral_redis_url"]
    assert made["corral_admin_key"].startswith("corral-")
    assert all(len(value) > 40 for value in made.values())
    assert len({value.split()[-1] for value in made.values()}) == len(FILES)


def test_only_containers_and_their_owner_can_read_them(checkout: Path) -> None:
    run(checkout)
    assert stat.S_IMODE((checkout / "secrets").stat().st_mode) == 0o700
    assert {stat.S_IMODE((checkout / "secrets" / name).stat().st_mode) for name in FILES} == {0o644}


def test_the_env_file_is_created_or_extended(checkout: Path) -> None:
    run(checkout)
    lines = (checkout / ".env").read_text().splitlines()
    assert "CORRAL_SECRETS=./secrets" in lines
    assert [line for line in lines if line.startswith("CORRAL_DOCKER_GID=")][0].partition("=")[2].isdecimal()
    (checkout / ".env").write_text("CORRAL_PORT=80\nCORRAL_DOCKER_GID=7\n")
    run(checkout)
    assert (checkout / ".env").read_text() == "CORRAL_PORT=80\nCORRAL_DOCKER_GID=7\nCORRAL_SECRETS=./secrets\n"


def test_a_missing_secret_is_an_error_in_one_sentence(checkout: Path) -> None:
    assert run(checkout, "check").stderr == "Error: there are no secrets yet; run `make secrets` first\n"
    run(checkout)
    file = checkout / "secrets" / "redis_auth"
    content = file.read_text()
    for now, sentence in (
        (None, "./secrets/redis_auth is missing; restore it, or run `make secrets`"),
        ("", "./secrets/redis_auth is empty; restore its content, or remove it and run `make secrets`"),
        (
            "requirepass ChangeThis",
            "./secrets/redis_auth still contains the placeholder; replace it with a secret, or remove it and run `make secrets`",
        ),
    ):
        file.unlink(missing_ok=True)
        if now is not None:
            file.write_text(now)
        done = run(checkout, "check")
        assert (done.returncode, done.stderr) == (1, f"Error: {sentence}\n")
    file.write_text(content)
    assert run(checkout, "check").returncode == 0
