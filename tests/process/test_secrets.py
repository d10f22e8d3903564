"""Settings from secret files, as containers get them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from services.cli.config import Settings as CliSettings
from services.gateway.config import Settings as GatewaySettings
from services.node.config import Settings as NodeSettings
from services.process.secrets import PLACEHOLDER
from services.registry.config import Settings as RegistrySettings
from services.worker.config import Settings as WorkerSettings

TOKEN = "a-token-of-sixteen"
REDIS = "redis://:password@redis:6379/0"
DATABASE = "postgresql+psycopg://corral:password@postgres:5432/corral"
ADMIN_KEY = "corral-a-key-for-administrators"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REDIS_URL", "REGISTRY_TOKEN", "DATABASE_URL"):
        monkeypatch.delenv(f"CORRAL_{name}", raising=False)
    files = {
        "corral_registry_token": TOKEN,
        "corral_redis_url": REDIS,
        "corral_database_url": DATABASE,
        "corral_admin_key": ADMIN_KEY,
        "corral_api_key": ADMIN_KEY,
    }
    for name, content in files.items():
        (tmp_path / name).write_text(f"{content}\n")
    return tmp_path


def test_every_service_reads_its_secrets_from_files(folder: Path) -> None:
    gateway = GatewaySettings(_secrets_dir=folder)
    assert (gateway.redis_url, gateway.registry_token.get_secret_value()) == (REDIS, TOKEN)
    registry = RegistrySettings(_secrets_dir=folder)
    assert (registry.redis_url, registry.database_url, registry.registry_token.get_secret_value()) == (REDIS, DATABASE, TOKEN)
    assert registry.admin_key
    assert registry.admin_key.get_secret_value() == ADMIN_KEY
    assert NodeSettings(_secrets_dir=folder).redis_url == REDIS
    worker = WorkerSettings(_secrets_dir=folder, node="n", replica="r", version="0" * 64)
    assert worker.redis_url == REDIS
    key = CliSettings(_secrets_dir=folder).api_key
    assert key
    assert key.get_secret_value() == ADMIN_KEY


def test_a_variable_overrides_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_REDIS_URL", "redis://elsewhere:6379/0")
    assert NodeSettings(_secrets_dir=folder).redis_url == "redis://elsewhere:6379/0"


#: Settings classes look for the folder at import, so each runs in a process that has it.
READ = """
import sys
from pathlib import Path
from services.process import secrets
secrets.FOLDER = Path(sys.argv[1])
from {module} import Settings
print(Settings({arguments}).redis_url)
"""


@pytest.mark.parametrize(
    ("service", "arguments"),
    [("gateway", ""), ("registry", ""), ("node", ""), ("worker", "node='n', replica='r', version='0' * 64")],
)
def test_every_service_reads_the_secrets_folder_of_containers(folder: Path, service: str, arguments: str) -> None:
    program = READ.format(module=f"services.{service}.config", arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == (REDIS, "")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (GatewaySettings, "corral_registry_token"),
        (GatewaySettings, "corral_redis_url"),
        (RegistrySettings, "corral_registry_token"),
        (RegistrySettings, "corral_redis_url"),
        (RegistrySettings, "corral_database_url"),
        (RegistrySettings, "corral_admin_key"),
        (NodeSettings, "corral_redis_url"),
    ],
)
def test_a_placeholder_is_refused(folder: Path, settings: type[BaseSettings], name: str) -> None:
    file = folder / name
    file.write_text(file.read_text().replace("password", PLACEHOLDER).replace("a-", f"{PLACEHOLDER}-"))
    with pytest.raises(ValidationError, match="still contains the placeholder"):
        settings(_secrets_dir=folder)


def test_an_admin_key_must_have_the_prefix(folder: Path) -> None:
    (folder / "corral_admin_key").write_text("some-secret-without-its-prefix")
    with pytest.raises(ValidationError, match="an API key must start with corral-"):
        RegistrySettings(_secrets_dir=folder)
