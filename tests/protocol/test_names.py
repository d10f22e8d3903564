"""Model names: what users may type, what it means, and that no name leaves its folder."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from services.protocol.errors import BadRequest
from services.protocol.names import ModelName

parts = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}", fullmatch=True)
hosts = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9.-]{0,20}(:[0-9]{1,5})?", fullmatch=True)
names = st.builds(ModelName, hosts, parts, parts, parts)
#: Mostly the characters of names, so that many of these texts are valid or nearly valid.
spellings = st.text(st.sampled_from("aZ09._-:/\\ ~%\0\n") | st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.mark.parametrize(
    ("text", "full", "display"),
    [
        ("smollm2", "registry.ollama.ai/library/smollm2:latest", "smollm2:latest"),
        ("smollm2:135m", "registry.ollama.ai/library/smollm2:135m", "smollm2:135m"),
        ("  smollm2:135m\n", "registry.ollama.ai/library/smollm2:135m", "smollm2:135m"),
        ("team/m", "registry.ollama.ai/team/m:latest", "team/m:latest"),
        ("hf.co/org/repo:Q4_K_M", "hf.co/org/repo:Q4_K_M", "hf.co/org/repo:Q4_K_M"),
        ("localhost:5000/team/m:x", "localhost:5000/team/m:x", "localhost:5000/team/m:x"),
        ("registry.ollama.ai/library/smollm2", "registry.ollama.ai/library/smollm2:latest", "smollm2:latest"),
        ("Registry.Ollama.AI/Library/SmolLM2", "Registry.Ollama.AI/Library/SmolLM2:latest", "SmolLM2:latest"),
        ("_private/_m:_t", "registry.ollama.ai/_private/_m:_t", "_private/_m:_t"),
    ],
)
def test_short_names_are_completed(text: str, full: str, display: str) -> None:
    name = ModelName.parse(text)
    assert (name.full, name.display) == (full, display)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ":",
        ":tag",
        "m:",
        "m:a:b",
        "/m",
        "//m",
        "host//m",
        "/team/m",
        "m/",
        "a/b/c/d",
        "https://host/team/m",
        "..",
        "../m",
        "a/../m",
        "../../etc/passwd",
        "m:..",
        "m:../../x",
        "m:.hidden",
        ".hidden",
        "-flag",
        "host/-flag/m",
        "a b",
        "a\\b",
        "a\0b",
        "a\nb",
        "mödel",
        "ſmollm2",  # case-folds to s
        "\u212alingon",  # the Kelvin sign case-folds to k
        "٣",
        "m" * 81,
        "n" * 81 + "/m",
        "m:" + "t" * 129,
        "h" * 256 + "/n/m",
    ],
)
def test_an_invalid_name_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="invalid model name"):
        ModelName.parse(text)


@settings(deadline=None)
@given(names)
def test_the_full_form_parses_to_the_same_name(name: ModelName) -> None:
    assert ModelName.parse(name.full) == name


@settings(deadline=None)
@given(names)
@example(ModelName("REGISTRY.ollama.ai", "Library", "m", "latest"))
def test_the_display_form_parses_to_the_same_name(name: ModelName) -> None:
    assert ModelName.parse(name.display).key == name.key


@settings(deadline=None)
@given(names)
def test_names_are_case_insensitive(name: ModelName) -> None:
    assert ModelName.parse(name.full.upper()).key == ModelName.parse(name.full.lower()).key == name.key


@settings(deadline=None)
@given(names, names)
def test_different_names_have_different_keys(one: ModelName, other: ModelName) -> None:
    assume(one.full.lower() != other.full.lower())
    assert one.key != other.key
    assert one.display.lower() != other.display.lower()


@settings(deadline=None)
@given(spellings)
@example("a/..")
@example("..:..")
@example("a:b/c")
def test_no_name_leaves_the_store(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except BadRequest:
        return
    for part in (name.host, name.namespace, name.model, name.tag):
        assert part.isascii()
        assert part not in ("", ".", "..")
        assert not part.startswith((".", "-"))
        assert not set(part) & set("/\\\0 \n~%")
    path = PurePosixPath("/store", name.host, name.namespace, name.model, name.tag)
    assert len(path.parts) == 6
    assert ModelName.parse(name.full) == name
