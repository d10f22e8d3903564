"""A real Docker engine, where one answers, and an image to run in it. Everything made on it is gone after the tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import docker
import pytest
from docker.errors import DockerException, NotFound

from services.protocol.messages import new_id
from tests.node.containers.images import import_image


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """The engine's own API, to look at from outside what the runtime does."""
    try:
        client = docker.from_env(version="auto")
    except DockerException as error:
        pytest.skip(f"NO DOCKER ENGINE, so nothing of the Docker runtime was tried: {error}")
    yield client.api
    client.close()


@pytest.fixture(scope="session")
def image(engine: Any) -> Iterator[str]:
    tag = f"corral-test-worker:{new_id()}-cpu"
    import_image(engine, tag)
    yield tag
    engine.remove_image(tag, force=True)


@pytest.fixture
def node(engine: Any) -> Iterator[str]:
    """The name of a node that nothing of the test's outlives."""
    name = f"test-{new_id()}"
    yield name
    for container in engine.containers(all=True, filters={"label": f"ai.corral.node={name}"}):
        engine.remove_container(container["Id"], force=True, v=True)


@pytest.fixture
def network(engine: Any, node: str) -> Iterator[str]:
    engine.create_network(node, driver="bridge", internal=True)
    yield node
    for container in engine.containers(all=True, filters={"label": f"ai.corral.node={node}"}):
        engine.remove_container(container["Id"], force=True, v=True)
    try:
        engine.remove_network(node)
    except NotFound:
        return
