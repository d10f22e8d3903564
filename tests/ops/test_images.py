"""Values in the files of the images and the cluster that must agree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE_FILES = sorted(ROOT.glob("compose*.yaml"))


def test_one_version_of_uv_is_used() -> None:
    text = "\n".join((ROOT / name).read_text() for name in ("ops/bootstrap.sh", "Dockerfile", "Dockerfile.worker"))
    versions = re.findall(r"UV_VERSION=([0-9.]+)", text)
    assert len(versions) == 3
    assert len(set(versions)) == 1


def test_every_variable_of_the_compose_files_is_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    for file in COMPOSE_FILES:
        for name in re.findall(r"(?<!\$)\$\{([A-Z_]+)", file.read_text()):
            if name != "COMPOSE_PROJECT_NAME":  # set by Compose itself
                assert re.search(rf"^#?{name}=", example, re.MULTILINE), f"{name} of {file.name}"


def test_defaults_in_the_example_match_the_compose_files() -> None:
    text = "\n".join(file.read_text() for file in COMPOSE_FILES)
    for name, value in re.findall(r"^#(CORRAL_[A-Z_]+)=(.+)$", (ROOT / ".env.example").read_text(), re.MULTILINE):
        for default in re.findall(rf"\$\{{{name}:-([^}}]*)\}}", text):
            assert default == value, name


def test_no_secret_is_in_an_environment() -> None:
    for file in COMPOSE_FILES:
        assert not re.search(r"^\s*[A-Z_]*(PASSWORD|TOKEN|KEY|DATABASE_URL|REDIS_URL):", file.read_text(), re.MULTILINE), (
            file.name
        )


class ComposeLoader(yaml.SafeLoader):
    """Reads Compose's own tags as the values after them."""


def _sequence(loader: ComposeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node)


ComposeLoader.add_constructor("!reset", _sequence)


def services() -> Iterator[tuple[str, dict[str, Any]]]:
    """The services that a file defines, without those that it only extends."""
    for file in COMPOSE_FILES:
        for name, service in yaml.load(file.read_text(), ComposeLoader)["services"].items():
            if "restart" in service:
                yield f"{file.name}: {name}", service


@pytest.mark.parametrize(("name", "service"), list(services()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_container_has_few_rights_and_has_limits(name: str, service: dict[str, Any]) -> None:
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name.endswith("caddy") else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}


def test_the_page_has_the_sum_of_the_memory_limits() -> None:
    cluster = yaml.load((ROOT / "compose.yaml").read_text(), ComposeLoader)["services"]
    running = [service for service in cluster.values() if service["restart"] != "no"]
    total = sum(_mebibytes(service["deploy"]["resources"]["limits"]["memory"]) for service in running)
    assert f"add up to {total / 1024:.1f} GiB" in (ROOT / "docs" / "operations.md").read_text()


def _mebibytes(limit: str) -> int:
    return int(limit[:-1]) * {"m": 1, "g": 1024}[limit[-1]]
