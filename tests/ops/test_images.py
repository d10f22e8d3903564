"""What several files say of the images and the cluster, and must say alike."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPOSE_FILES = sorted(ROOT.glob("compose*.yaml"))


def test_one_version_of_uv() -> None:
    text = "\n".join((ROOT / name).read_text() for name in ("ops/bootstrap.sh", "Dockerfile", "Dockerfile.worker"))
    versions = re.findall(r"UV_VERSION=([0-9.]+)", text)
    assert len(versions) == 3
    assert len(set(versions)) == 1


def test_every_variable_of_the_cluster_is_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    for file in COMPOSE_FILES:
        for name in re.findall(r"(?<!\$)\$\{([A-Z_]+)", file.read_text()):
            if name != "COMPOSE_PROJECT_NAME":  # compose's own
                assert re.search(rf"^#?{name}=", example, re.MULTILINE), f"{name} of {file.name}"


def test_defaults_in_the_example_are_those_of_the_files() -> None:
    text = "\n".join(file.read_text() for file in COMPOSE_FILES)
    for name, value in re.findall(r"^#(CORRAL_[A-Z_]+)=(.+)$", (ROOT / ".env.example").read_text(), re.MULTILINE):
        for default in re.findall(rf"\$\{{{name}:-([^}}]*)\}}", text):
            assert default == value, name


def test_no_secret_has_a_place_in_an_environment() -> None:
    for file in COMPOSE_FILES:
        assert not re.search(r"^\s*[A-Z_]*(PASSWORD|TOKEN|KEY|DATABASE_URL|REDIS_URL):", file.read_text(), re.MULTILINE), (
            file.name
        )
