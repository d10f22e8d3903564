from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp

from services.protocol.engine import EngineSettings
from services.protocol.sampling import SamplingParams
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.sampling.dry import Dry, repeats
from tests.ggufs import write_gguf
from tests.worker.engine.sampling.reference import Reference

SIZE = 259  # vocabulary of the tiny model: three control tokens, then the 256 bytes
FIRST_BYTE = 3


_nowhere = llama_cpp.llama_log_callback(lambda level, text, data: None)


@pytest.fixture(scope="module", autouse=True)
def log() -> Iterator[None]:
    """Silences llama.cpp, which would log to the most recent runner even if that is closed."""
    llama_cpp.llama_log_set(_nowhere, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(_nowhere, ctypes.c_void_p(0))


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(smollm2_path, EngineSettings(slots=1, context_tokens=64))
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    yield llama_cpp.llama_model_get_vocab(model)
    llama_cpp.llama_model_free(model)


def byte_of(token: int) -> bytes:
    return bytes([token - FIRST_BYTE])


def tokens_of(text: str) -> list[int]:
    return [byte + FIRST_BYTE for byte in text.encode()]


def reference(vocab: Any, params: SamplingParams, text_tokens: int) -> Reference:
    breakers = [breaker.encode() for breaker in params.dry_sequence_breakers]
    last_n = text_tokens if params.dry_penalty_last_n < 0 else params.dry_penalty_last_n
    return Reference(
        llama_cpp.llama_sampler_init_dry(
            vocab,
            params.dry_multiplier,
            params.dry_base,
            params.dry_allowed_length,
            last_n,
            (ctypes.c_char_p * len(breakers))(*breakers),
            len(breakers),
        )
    )


LETTERS = "aaabbbc\n:*x"
#: A passage repeated with another text in between, then a part of the passage.
texts = st.builds(
    lambda passage, between, start, times: (passage + between) * times + passage[start:],
    passage=st.text(LETTERS, min_size=1, max_size=20),
    between=st.text(LETTERS, max_size=6),
    start=st.integers(0, 10),
    times=st.integers(1, 3),
)
configurations = st.builds(
    SamplingParams,
    dry_multiplier=st.floats(0.5, 5, width=32) | st.floats(-2, 2, width=32),
    dry_base=st.sampled_from([1.75, 1.0, 1.1, 3.0, 50.0]),
    dry_allowed_length=st.integers(-1, 5),
    dry_penalty_last_n=st.sampled_from([-1, -1, 3, 10, 50]),
    dry_sequence_breakers=st.lists(st.sampled_from(["\n", ":", "*", "ab", "aca", "\nb", ""]), max_size=4).map(tuple),
)


@settings(max_examples=400)
@given(text=texts, params=configurations)
@example(text="", params=SamplingParams(dry_multiplier=1.0, dry_allowed_length=-1))
@example(text="a" * 400, params=SamplingParams(dry_multiplier=1.0, dry_base=3.0))
@example(text="ab" * 300, params=SamplingParams(dry_multiplier=0.5, dry_allowed_length=2))
def test_dry_penalizes_the_same_tokens_as_llama_cpp(vocabulary: Any, text: str, params: SamplingParams) -> None:
    tokens = tokens_of(text)
    theirs = reference(vocabulary, params, len(tokens))
    theirs.accept(tokens)
    expected = theirs.apply(np.zeros(SIZE, np.float32)).logits
    row = np.zeros(SIZE, np.float32)
    dry = Dry(params, byte_of)
    if dry.is_on:
        dry.apply(row, tokens)
    np.testing.assert_allclose(row, np.clip(expected, -1e30, 1e30), rtol=1e-4)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(dry_multiplier=0.0),
        SamplingParams(dry_multiplier=1.0, dry_base=0.9),
        SamplingParams(dry_multiplier=1.0, dry_penalty_last_n=0),
    ],
)
def test_dry_is_off_when_llama_cpps_is(vocabulary: Any, params: SamplingParams) -> None:
    tokens = tokens_of("abcabcabc")
    theirs = reference(vocabulary, params, len(tokens))
    theirs.accept(tokens)
    assert not theirs.apply(np.zeros(SIZE, np.float32)).logits.any()
    assert not Dry(params, byte_of).is_on


def test_dry_penalizes_as_llama_cpp_does_on_a_real_vocabulary(smollm2: LlamaRunner) -> None:
    text = 'The quick brown fox said: "jump over the lazy dog". Then it jumped. Again the quick brown fox'
    tokens = smollm2.tokenize(text, special=False)
    params = SamplingParams(dry_multiplier=0.8)
    theirs = reference(smollm2._vocab, params, len(tokens))
    theirs.accept(tokens)
    expected = theirs.apply(np.zeros(smollm2.num_vocab, np.float32)).logits
    row = np.zeros(smollm2.num_vocab, np.float32)
    Dry(params, smollm2.token_text).apply(row, tokens)
    (said,) = smollm2.tokenize(" said", special=False)
    assert row[said] < -0.7
    np.testing.assert_allclose(row, expected, rtol=1e-5)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=80))
def test_repeats_finds_every_repeated_passage(recent: list[int]) -> None:
    def length(place: int) -> int:
        count = 0
        while place + count < len(recent) and recent[place + count] == recent[count]:
            count += 1
        return count

    assert dict(repeats(recent)) == {place: length(place) for place in range(1, len(recent)) if length(place)}


def test_dry_is_fast_on_a_long_text_of_one_token() -> None:
    row = np.zeros(SIZE, np.float32)
    dry = Dry(SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=()), byte_of)
    tokens = tokens_of("a" * 30_000)
    started_at = time.monotonic()
    dry.apply(row, tokens)
    assert time.monotonic() - started_at < 2
