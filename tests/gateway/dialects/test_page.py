"""docs/http-api.md names every field and every option that a dialect reads."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from services.gateway.dialects import ollama, openai
from services.gateway.dialects.options import run_options
from services.protocol.sampling import SamplingParams, StopConditions

PAGE = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text()


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    ("title", "body"),
    [
        ("Ollama's routes", ollama.ChatBody),
        ("Ollama's routes", ollama.GenerateBody),
        ("OpenAI's routes", openai.ChatBody),
        ("OpenAI's routes", openai.CompletionBody),
    ],
)
def test_every_field_is_documented(title: str, body: type[msgspec.Struct]) -> None:
    missing = [field.encode_name for field in msgspec.structs.fields(body) if f"`{field.encode_name}`" not in section(title)]
    assert missing == []


def test_every_option_is_documented() -> None:
    names = {*SamplingParams.__struct_fields__, *StopConditions.__struct_fields__, "num_predict", "num_keep"} - {"max_tokens"}
    assert [name for name in sorted(names) if f"`{name}`" not in section("Options")] == []


def test_run_options_start_from_the_defaults() -> None:
    options = run_options()
    assert (options.sampling, options.stopping, options.keep_tokens) == (SamplingParams(), StopConditions(), 0)
