"""The workers' settings that follow from the agent's."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.node.config import Settings, worker_metrics


@pytest.mark.parametrize(
    ("settings", "host", "port", "advertised"),
    [
        ({"runtime": "processes"}, "127.0.0.1", "auto", ""),
        ({"runtime": "processes", "metrics_host": "0.0.0.0", "metrics_advertise": "10.0.0.2"}, "0.0.0.0", "auto", "10.0.0.2"),
        ({"runtime": "docker"}, "0.0.0.0", "9464", ""),
        ({"runtime": "docker", "metrics_advertise": "10.0.0.2"}, "0.0.0.0", "9464", "none"),
        ({"runtime": "docker", "metrics_advertise": "none"}, "0.0.0.0", "9464", "none"),
        ({"runtime": "docker", "worker_network": "host"}, "127.0.0.1", "auto", ""),
        ({"runtime": "docker", "worker_network": "host", "metrics_advertise": "10.0.0.2"}, "127.0.0.1", "auto", "10.0.0.2"),
    ],
    ids=[
        "processes",
        "processes of a further machine",
        "containers",
        "containers of a further machine",
        "containers without a reachable address",
        "containers with the machine's ports",
        "containers with a further machine's ports",
    ],
)
def test_where_workers_serve_metrics(settings: dict[str, str], host: str, port: str, advertised: str) -> None:
    assert worker_metrics(Settings.model_validate({"node": "n", "metrics_port": 9464, **settings})) == {
        "CORRAL_METRICS_HOST": host,
        "CORRAL_METRICS_PORT": port,
        "CORRAL_METRICS_ADVERTISE": advertised,
    }


def test_without_a_metrics_port_workers_serve_no_metrics() -> None:
    assert worker_metrics(Settings(node="n", metrics_port=0)) == {"CORRAL_METRICS_PORT": "0"}


@pytest.mark.parametrize(
    ("settings", "folders"),
    [
        ({"runtime": "processes"}, ["/"]),
        ({"runtime": "docker"}, ["/import"]),
        ({"import_paths": "/a, ~/b ,"}, ["/a", str(Path.home() / "b")]),
        ({"import_paths": ""}, []),
    ],
    ids=["the user's own machine", "containers", "listed", "none"],
)
def test_where_files_are_imported_from(settings: dict[str, str], folders: list[str]) -> None:
    found = Settings.model_validate({"node": "n", **settings}).import_folders
    assert [str(folder) for folder in found] == folders


def test_source_hosts_that_are_none() -> None:
    with pytest.raises(ValidationError, match="is no host name, address or network"):
        Settings.model_validate({"node": "n", "source_hosts": "http://files.lan"})
