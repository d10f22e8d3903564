"""A published encoder, from a file on the node to vectors in the real clients."""

from __future__ import annotations

from pathlib import Path

import httpx
import ollama
import openai
import pytest

from tests.end_to_end.conftest import Platform
from tests.minilm import MiniLM

pytestmark = pytest.mark.end_to_end

TEXTS = ["A man is eating food.", "A man eats a piece of bread.", "The girl is carrying a baby.", "naïve café, 日本語"]


@pytest.fixture(scope="module")
def model(platform: Platform, minilm_path: Path) -> str:
    done = platform.corral("pull", str(minilm_path), "--as", "all-minilm")
    assert done.returncode == 0, done.stderr
    return "all-minilm"


def test_real_clients_get_the_vectors_of_the_reference(platform: Platform, model: str, minilm: MiniLM) -> None:
    with openai.OpenAI(base_url=f"{platform.url}/v1", api_key="unused", max_retries=0) as client:
        by_openai = client.embeddings.create(model=model, input=TEXTS)
    with ollama.Client(host=platform.url) as other:
        by_ollama = other.embed(model, TEXTS)
    assert by_openai.usage.prompt_tokens == by_ollama.prompt_eval_count
    for text, entry, vector in zip(TEXTS, by_openai.data, by_ollama.embeddings, strict=True):
        assert minilm.embed(text) @ entry.embedding > 0.999
        assert list(vector) == pytest.approx(entry.embedding, abs=1e-3)


def test_the_capabilities_are_shown(platform: Platform, model: str, http: httpx.Client) -> None:
    with ollama.Client(host=platform.url) as client:
        shown = client.show(model)
    assert shown.capabilities == ["embedding"]
    assert shown.details is not None
    assert (shown.details.family, shown.details.parameter_size) == ("bert", "22.57M")
    refused = http.post("/api/chat", json={"model": model, "messages": [{"role": "user", "content": "hi"}]})
    assert (refused.status_code, refused.json()) == (400, {"error": '"all-minilm" does not support chat'})
