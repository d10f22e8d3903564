"""The real `openai` and `ollama` clients with `corral up`."""

from __future__ import annotations

from collections.abc import Iterator

import ollama
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.end_to_end.conftest import SMOLLM2, Platform

pytestmark = pytest.mark.end_to_end

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


@pytest.fixture
def openai_client(platform: Platform) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{platform.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def ollama_client(platform: Platform) -> Iterator[ollama.Client]:
    with ollama.Client(host=platform.url) as client:
        yield client


def test_openai_chat(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=20)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_openai_chat_in_a_stream_is_the_same(openai_client: openai.OpenAI) -> None:
    chunks = list(
        openai_client.chat.completions.create(
            model=SMOLLM2,
            messages=QUESTION,
            temperature=0,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None


def test_openai_seed_repeats_the_answer(openai_client: openai.OpenAI) -> None:
    def say() -> str:
        answer = openai_client.completions.create(model=SMOLLM2, prompt="Once upon", max_tokens=12, temperature=1, seed=3)
        return answer.choices[0].text

    assert say() == say()


def test_openai_models(openai_client: openai.OpenAI) -> None:
    assert SMOLLM2 in [model.id for model in openai_client.models.list()]


def test_openai_unknown_model_is_not_found(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'nothing' not found"):
        openai_client.chat.completions.create(model="nothing", messages=QUESTION)


def test_openai_prompt_longer_than_the_context_is_refused(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="longer than the context"):
        openai_client.completions.create(model=SMOLLM2, prompt="word " * 9000)


def test_ollama_chat_and_its_counters(ollama_client: ollama.Client) -> None:
    answer = ollama_client.chat(SMOLLM2, messages=QUESTION, options={"temperature": 0, "num_predict": 20})
    assert "Paris" in (answer.message.content or "")
    assert answer.done_reason == "stop"
    for duration in (answer.total_duration, answer.load_duration, answer.prompt_eval_duration, answer.eval_duration):
        assert duration is not None
        assert duration > 0
    for count in (answer.prompt_eval_count, answer.eval_count):
        assert count is not None
        assert count > 0


def test_ollama_chat_in_a_stream(ollama_client: ollama.Client) -> None:
    parts = list(ollama_client.chat(SMOLLM2, messages=QUESTION, stream=True, options={"temperature": 0}))
    assert "Paris" in "".join(part.message.content or "" for part in parts)
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_ollama_generate_continues_from_its_context(ollama_client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 8}
    first = ollama_client.generate(SMOLLM2, prompt="Hello!", options=options)
    assert first.context
    second = ollama_client.generate(SMOLLM2, prompt="And then?", context=list(first.context), options=options)
    assert second.prompt_eval_count is not None
    assert second.prompt_eval_count > len(first.context)


def test_ollama_list_show_and_ps(ollama_client: ollama.Client) -> None:
    ollama_client.generate(SMOLLM2, prompt="x", options={"num_predict": 1})
    (listed,) = [model for model in ollama_client.list().models if model.model == SMOLLM2]
    assert listed.details is not None
    assert (listed.details.format, listed.details.family, listed.details.quantization_level) == ("gguf", "llama", "Q4_1")
    shown = ollama_client.show(SMOLLM2)
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert "<|im_start|>" in (shown.template or "")
    assert "Apache" in (shown.license or "")
    (running,) = [model for model in ollama_client.ps().models if model.model == SMOLLM2]
    assert running.size
    assert running.context_length
    assert running.digest == listed.digest


def test_ollama_unknown_model_is_not_found(ollama_client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'nothing' not found") as caught:
        ollama_client.chat("nothing", messages=QUESTION)
    assert caught.value.status_code == 404


def test_two_models_serve_at_the_same_time(ollama_client: ollama.Client, openai_client: openai.OpenAI, gemma3: str) -> None:
    completion = openai_client.completions.create(model=gemma3, prompt="1, 2, 3, 4, 5,", max_tokens=4, temperature=0)
    assert completion.choices[0].text.startswith(" 6,")
    ollama_client.generate(SMOLLM2, prompt="x", options={"num_predict": 1})
    assert {SMOLLM2, f"{gemma3}:latest"} <= {model.model for model in ollama_client.ps().models}


def test_a_base_model_does_not_chat(openai_client: openai.OpenAI, gemma3: str) -> None:
    with pytest.raises(openai.BadRequestError, match="does not support chat"):
        openai_client.chat.completions.create(model=gemma3, messages=QUESTION)
