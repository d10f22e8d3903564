"""A worker's settings, from the environment that a node agent sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.process.engine_variables import to_environment
from services.protocol.engine import EngineSettings
from services.worker.config import Settings

NODE = {"CORRAL_REDIS_URL": "redis://here", "CORRAL_NODE": "n1", "CORRAL_REPLICA": "r1", "CORRAL_VERSION": "f" * 64}


def test_an_agents_environment_becomes_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EngineSettings(
        slots=3, kv_type_k="q8_0", tensor_split=(3.0, 1.0), mmap=False, lora=(("/a.gguf", 0.5),), pooling="mean"
    )
    for name, value in {**NODE, "CORRAL_MODEL_PATH": "/m.gguf", **to_environment(engine)}.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.node, settings.replica, settings.model_path) == ("n1", "r1", Path("/m.gguf"))
    assert settings.engine == engine


@pytest.mark.parametrize(("name", "value"), [("CORRAL_SLOTS", "0"), ("CORRAL_KV_TYPE_V", "q9"), ("CORRAL_LORA", "a.gguf")])
def test_invalid_settings_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for variable, text in {**NODE, name: value}.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises((ValidationError, ValueError)):
        Settings()
