"""Engine settings in transit: as JSON in a Start job, and as environment variables of a worker."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from pydantic import ValidationError

from services.process.engine_variables import EngineVariables, to_environment
from services.protocol.engine import EngineSettings
from services.protocol.jobs import Start, job_from_payload, job_to_payload
from tests.protocol.samples import engine_settings


def from_environment(variables: dict[str, str]) -> EngineSettings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return EngineVariables().engine


@given(engine_settings())
def test_a_worker_reads_the_deployed_settings(engine: EngineSettings) -> None:
    start = Start("j", "r", "v", "sha256:m", engine)
    arrived = job_from_payload(msgspec.json.decode(msgspec.json.encode(job_to_payload(start))))
    assert isinstance(arrived, Start)
    assert from_environment(to_environment(arrived.engine)) == engine


def test_every_setting_is_passed_on_even_defaults() -> None:
    variables = to_environment(EngineSettings())
    assert set(variables) == {f"CORRAL_{name.upper()}" for name in EngineSettings.__struct_fields__}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORRAL_SLOTS", "99")
        assert from_environment(variables).slots == 8


def test_the_variables_have_the_same_defaults_as_the_message() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in EngineSettings.__struct_fields__:
            patch.delenv(f"CORRAL_{name.upper()}", raising=False)
        assert EngineVariables().engine == EngineSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slots", 0),
        ("slots", 257),
        ("batch_tokens", 0),
        ("kv_tokens", -1),
        ("gpu_layers", -2),
        ("kv_type_k", "q3_k"),
        ("split_mode", "tensor"),
        ("tensor_split", [-1.0]),
        ("pooling", "max"),
        ("context_tokens", 10**30),
        ("kv_tokens", 2**31),
        ("batch_tokens", 10**9),
        ("prefill_tokens", 10**9),
        ("threads", 1_000_000_000),
        ("gpu_layers", 10**9),
        ("main_gpu", 16),
        ("tensor_split", [1.0] * 17),
        ("rope_freq_base", 1e300),
        ("rope_freq_scale", 1e300),
        ("lora", [["a"]]),
        ("lora", [["a.gguf", 1.0]]),
        ("lora", [["sha256:abc", 1.0]]),
        ("lora", [["/a.gguf", 1e9]]),
        ("lora", [["/a.gguf", 1.0]] * 17),
        ("image", "a worker"),
    ],
)
def test_a_job_and_an_environment_refuse_the_same_values(name: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.convert({name: value}, EngineSettings)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    with pytest.raises(ValidationError, match=name):
        from_environment({f"CORRAL_{name.upper()}": text})


def test_a_quantised_v_cache_needs_flash_attention() -> None:
    with pytest.raises(msgspec.ValidationError, match="kv_type_v q8_0 needs flash attention"):
        msgspec.convert({"kv_type_v": "q8_0", "flash_attention": "off"}, EngineSettings)
    with pytest.raises(ValidationError, match="kv_type_v q8_0 needs flash attention"):
        from_environment({"CORRAL_KV_TYPE_V": "q8_0", "CORRAL_FLASH_ATTENTION": "off"})
    assert EngineSettings(kv_type_k="q8_0", flash_attention="off").kv_type_k == "q8_0"
