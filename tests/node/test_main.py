"""An agent that cannot start gives the reason in one line."""

from __future__ import annotations

import os

import pytest

from services.node.__main__ import main
from services.node.store import Store


def test_a_store_in_use_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CORRAL_STORE", str(store.root))
    assert main() == 1
    line = f"corral node: the store {store.root} is in use by another node agent (process {os.getpid()})\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("name", "value"), [("CORRAL_NODE", "not a name!"), ("CORRAL_RUNNER", "magic"), ("CORRAL_DRAIN_S", "-1")]
)
def test_an_invalid_setting_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert main() == 2
    error = capsys.readouterr().err
    assert error.startswith(f"corral node: {name}: ")
    assert error.count("\n") == 1
