"""The documentation matches the code. `python -m tests.test_docs` writes the generated page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.routing import iter_route_contexts
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

ROOT = Path(__file__).parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"

INTRODUCTION = """\
# Settings

Every setting is an environment variable. `corral up` and the node agent set the variables that their services need; the ones
you may want to set yourself are mostly in the gateway's table and in the command line's. Names of durations and sizes contain
the unit (except `KEEP_ALIVE`). A setting can also be a file in `/run/secrets`, named like the variable in lower case; the
environment variable takes precedence. This page is generated from the settings classes (`python -m tests.test_docs`).
"""

ENGINE = """
How replicas run their models. The registry's values are the defaults of every deployment; `corral deploy MODEL --set
NAME=VALUE` and the management API override them for one model (NAME is the variable without `CORRAL_`, in lower case). The node
agent passes the result to the workers.
"""

TELEMETRY = """
Metrics, logs and traces of gateways, workers, node agents and the registry (see [metrics](metrics.md)). `corral up` and node
agents pass these settings on to the processes that they start.
"""


def settings_classes() -> list[tuple[str, type[BaseSettings]]]:
    from services.cli.config import Settings as CliSettings
    from services.gateway.config import Settings as GatewaySettings
    from services.node.config import Settings as NodeSettings
    from services.process.engine_variables import EngineVariables
    from services.registry.config import Settings as RegistrySettings
    from services.telemetry.variables import TelemetryVariables
    from services.worker.config import Settings as WorkerSettings

    return [
        ("Gateway", GatewaySettings),
        ("Command line and `corral up`", CliSettings),
        ("Engine", EngineVariables),
        ("Registry", RegistrySettings),
        ("Node agent", NodeSettings),
        ("Worker", WorkerSettings),
        ("Telemetry", TelemetryVariables),
    ]


def own_fields(settings: type[BaseSettings]) -> dict[str, FieldInfo]:
    """The fields of a class, without those of shared classes, which have separate tables."""
    from services.process.engine_variables import EngineVariables
    from services.telemetry.variables import TelemetryVariables

    inherited = [
        shared for shared in (EngineVariables, TelemetryVariables) if settings is not shared and issubclass(settings, shared)
    ]
    elsewhere = {name for shared in inherited for name in shared.model_fields}
    return {name: field for name, field in settings.model_fields.items() if name not in elsewhere}


def _variables(settings: type[BaseSettings], name: str) -> str:
    alias = settings.model_fields[name].validation_alias
    names = (
        [f"{settings.model_config['env_prefix']}{name}".upper()]
        if alias is None
        else [str(choice) for choice in getattr(alias, "choices", [alias])]
    )
    return ", ".join(f"`{variable}`" for variable in names if variable.isupper())


def _default(settings: type[BaseSettings], name: str) -> str:
    field = settings.model_fields[name]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    home = str(Path.home())
    return f"`{value}`".replace(home, "~") if value not in (None, "", ()) else ""


def render_configuration() -> str:
    parts = [INTRODUCTION]
    for title, settings in settings_classes():
        introduction = {"Engine": ENGINE, "Telemetry": TELEMETRY}.get(title, "")
        parts.append(f"\n## {title}\n{introduction}\n| variable | default | meaning |\n|---|---|---|")
        for name, field in own_fields(settings).items():
            description = (field.description or "").replace("|", "\\|")
            parts.append(f"| {_variables(settings, name)} | {_default(settings, name)} | {description} |")
    return "\n".join(parts) + "\n"


def test_every_setting_has_a_description() -> None:
    for title, settings in settings_classes():
        for name, field in settings.model_fields.items():
            assert field.description, f"{title}: {name}"


def test_the_configuration_page_matches_the_settings_classes() -> None:
    assert CONFIGURATION.read_text() == render_configuration(), "run python -m tests.test_docs"


def test_every_route_is_documented() -> None:
    from services.gateway.app import create_app as gateway
    from services.gateway.config import Settings as GatewaySettings
    from services.registry.app import create_app as registry
    from services.registry.config import Settings as RegistrySettings

    token = "a-token-of-the-tests"
    database = "postgresql+psycopg://user@nowhere/corral"
    page = (ROOT / "docs" / "http-api.md").read_text()
    apps = [
        gateway(GatewaySettings(registry_token=token)),
        registry(RegistrySettings(registry_token=token, database_url=database)),
    ]
    paths = {context.path.partition("{")[0] for app in apps for context in iter_route_contexts(app.routes) if context.path}
    assert len(paths) > 20
    for path in paths:
        assert path in page, path


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("ops/**/*.md"), *ROOT.glob("services/**/*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(next(name for name in (anchor, *(f"{anchor}-{number}" for number in range(1, 99))) if name not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_existing_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


if __name__ == "__main__":
    CONFIGURATION.write_text(render_configuration())
