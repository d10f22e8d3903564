from __future__ import annotations

import pytest

from services.registry.database.abilities import abilities
from tests.worker.chat.templates import CHATML, TEMPLATES, template_of

FIM = {f"tokenizer.ggml.fim_{place}_token_id": 1 for place in ("pre", "suf", "mid")}


@pytest.mark.parametrize(
    ("template", "able"),
    [
        ("", ()),
        (CHATML, ("tools",)),
        ("{% if tools %}", ("tools",)),
        ("{{ message.tool_calls }}", ("tools",)),
        ("{{ content.split('</think>')[-1] }}", ("tools", "thinking")),
        ("<|channel|>{{ tools }}", ("tools", "thinking")),
    ],
)
def test_abilities_of_a_template(template: str, able: tuple[str, ...]) -> None:
    assert abilities(template, {}) == able


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_registry_and_the_worker_agree(family: str) -> None:
    source = TEMPLATES[family]
    format = template_of(source).format
    assert ("thinking" in abilities(source, {})) == (format.reasoning is not None)
    assert "tools" in abilities(source, {})


def test_infill_tokens_allow_insert() -> None:
    assert abilities("", FIM) == ("insert",)
    assert abilities("", {f"tokenizer.ggml.{place}_token_id": 1 for place in ("prefix", "suffix", "middle")}) == ("insert",)
    assert abilities("", dict(list(FIM.items())[:2])) == ()
