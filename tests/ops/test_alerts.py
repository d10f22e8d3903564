"""The alert rules: promtool's unit tests, and the entries in the runbook."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.ops.prometheus import RULES, promtool

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "ops" / "runbook.md").read_text()
ALERTS = [name for path in RULES for name in re.findall(r"alert: (\w+)", path.read_text())]


def test_configuration_and_rules_are_valid(tmp_path: Path) -> None:
    promtool("check", "rules", *RULES)
    shutil.copytree(ROOT / "ops" / "prometheus", tmp_path / "prometheus")
    config = tmp_path / "prometheus" / "prometheus.yml"
    token = tmp_path / "token"
    token.write_text("t")
    config.write_text(config.read_text().replace("/run/secrets/corral_registry_token", str(token)))
    promtool("check", "config", config)


def test_promtools_unit_tests_of_the_alerts_pass() -> None:
    promtool("test", "rules", *sorted((ROOT / "ops" / "prometheus" / "tests").glob("*.yml")))


def test_every_alert_has_a_unit_test() -> None:
    tested = "".join(path.read_text() for path in (ROOT / "ops" / "prometheus" / "tests").glob("*.yml"))
    fired = set(re.findall(r"- alertname: (\w+)", tested))
    assert fired == set(ALERTS)


def test_every_alert_has_a_unit_test_of_its_end() -> None:
    """When its machine is removed, its model is deleted or its process is replaced."""
    text = (ROOT / "ops" / "prometheus" / "tests" / "corral.yml").read_text()
    [gone] = [group for group in text.split("  - name: ") if group.startswith("what is gone for good")]
    ended = re.findall(r"alertname: (\w+), eval_time: 130m, exp_alerts: \[\]", gone)
    assert sorted(ended) == sorted(ALERTS)
    assert f"value: {len(ALERTS)}}}" in gone, "each of them fires before"


def test_every_alert_has_a_severity_and_an_entry_in_the_runbook() -> None:
    assert len(ALERTS) == len(set(ALERTS)) > 15
    for path in RULES:
        for text in re.split(r"\n(?= *- (?:alert|record): )", path.read_text())[1:]:
            alert = re.search(r"alert: (\w+)", text)
            if alert is None:
                continue
            assert re.search(r"severity: (page|ticket)", text), alert[1]
            assert f"runbook: ops/runbook.md#{alert[1].lower()}" in text, alert[1]


def test_the_runbook_has_an_entry_for_each_alert_and_for_nothing_else() -> None:
    entries = re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(entries) == sorted(ALERTS)
    for entry in re.split(r"^### ", RUNBOOK, flags=re.MULTILINE)[1:]:
        for part in ("*Symptom.*", "*Look here.*", "*Do this.*"):
            assert part in entry, entry.splitlines()[0]


def test_links_within_the_runbook_exist() -> None:
    anchors = {name.lower() for name in ALERTS}
    assert set(re.findall(r"\]\(#(\w+)\)", RUNBOOK)) <= anchors
