"""The whole sampling chain."""

from __future__ import annotations

from collections.abc import Sequence as TokenIds
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from services.protocol.sampling import SamplingParams, StopConditions
from services.worker.engine.sampling import Matcher, Sampler, Stages
from tests.worker.engine.sampling.reference import Reference
from tests.worker.engine.sampling.rows import chi_square, logits

Row = NDArray[np.float32]

END = 7  # the end token in these tests
PLAIN = SamplingParams()
ANYWHERE = StopConditions()


def make(
    params: SamplingParams = PLAIN,
    *,
    stopping: StopConditions = ANYWHERE,
    end: int | None = END,
    **more: Any,
) -> Sampler:
    ends = frozenset() if end is None else frozenset({end})
    return Sampler(Stages(params, lambda token: b"%d " % token), stopping, end_tokens=ends, **more)


def draws(sampler: Sampler, row: Row, count: int = 300, prompt: TokenIds[int] = ()) -> list[int]:
    """The draws at the first `count` positions after `prompt`; the text in between is zeros."""
    text = [*prompt, *[0] * count]
    return [sampler.sample(row, text[: len(prompt) + n], len(prompt)).token for n in range(count)]


class Scripted:
    """A grammar with one scripted mask per step."""

    def __init__(self, *masks: NDArray[np.bool_] | None) -> None:
        self._masks = list(masks)
        self.accepted: list[int] = []

    def mask(self) -> NDArray[np.bool_] | None:
        return self._masks[len(self.accepted)]

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def only(*tokens: int, size: int = 300) -> NDArray[np.bool_]:
    return np.isin(np.arange(size), tokens)


def all_but(*tokens: int, size: int = 300) -> NDArray[np.bool_]:
    return ~only(*tokens, size=size)


def test_temperature_zero_takes_the_likeliest_token() -> None:
    row = logits()
    assert set(draws(make(SamplingParams(temperature=0, typical_p=0.1, xtc_probability=1.0)), row, 5)) == {int(row.argmax())}


PARAMETERS = {
    "nothing": SamplingParams(),
    "temperature": SamplingParams(temperature=0.6),
    "a hot one": SamplingParams(temperature=1.8, min_p=0.02),
    "ollama": SamplingParams(temperature=0.8, top_k=40, top_p=0.9),
    "everything": SamplingParams(temperature=1.2, top_k=100, typical_p=0.9, top_p=0.95, min_p=0.01),
    "penalties": SamplingParams(repeat_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.4, top_k=30),
    "typical": SamplingParams(typical_p=0.5),
}


def reference_chain(params: SamplingParams, size: int) -> Reference:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for stage in (
        llama_cpp.llama_sampler_init_penalties(
            size, params.repeat_last_n, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
        ),
        llama_cpp.llama_sampler_init_top_k(params.top_k),
        llama_cpp.llama_sampler_init_typical(params.typical_p, 0),
        llama_cpp.llama_sampler_init_top_p(params.top_p, 0),
        llama_cpp.llama_sampler_init_min_p(params.min_p, 0),
        llama_cpp.llama_sampler_init_temp(params.temperature),
    ):
        llama_cpp.llama_sampler_chain_add(chain, stage)
    return Reference(chain)


@pytest.mark.parametrize("params", PARAMETERS.values(), ids=PARAMETERS.keys())
def test_draws_have_the_probabilities_of_llama_cpps_chain(params: SamplingParams) -> None:
    row, text = logits(size=300), [1, 5, 5, 9] * 16
    reference = reference_chain(params, len(row))
    reference.accept(text)
    expected = reference.apply(row).probabilities
    # Each choice draws its first token, after the same text.
    drawn = [make(params, choice=choice).sample(row, text, len(text)).token for choice in range(6000)]
    assert chi_square(drawn, expected)


def test_xtc_is_applied_with_its_probability() -> None:
    row = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04])).astype(np.float32)
    drawn = draws(make(SamplingParams(xtc_probability=0.5, xtc_threshold=0.15, seed=3)), row, 5000)
    without = np.array([0, 0, 0.2, 0.06, 0.04]) / 0.3
    expected = 0.5 * np.exp(row) + 0.5 * without
    assert chi_square(drawn, dict(enumerate(expected.tolist())))


def test_a_draw_depends_only_on_seed_position_text_and_logits() -> None:
    row = logits()
    params = SamplingParams(seed=42, xtc_probability=0.5, typical_p=0.9)
    sampler = make(params)
    expected = draws(sampler, row, 50)
    backwards = [make(params).sample(row, [0] * n, 0).token for n in reversed(range(50))]
    assert backwards[::-1] == expected
    for token in range(20):
        sampler.accept(token)
    assert draws(sampler, row, 50) == expected
    assert draws(make(params), row, 50, prompt=[0] * 30) == expected
    assert draws(make(SamplingParams(seed=43, xtc_probability=0.5, typical_p=0.9)), row, 50) != expected


def test_without_a_seed_two_requests_draw_differently() -> None:
    row = np.zeros(5000, dtype=np.float32)
    assert draws(make(), row, 20) != draws(make(), row, 20)


def test_choices_of_a_request_draw_differently_and_reproducibly() -> None:
    row = np.zeros(5000, dtype=np.float32)
    params = SamplingParams(seed=1)
    choices = [draws(make(params, choice=choice), row, 20) for choice in range(3)]
    assert choices[0] != choices[1] != choices[2]
    assert choices == [draws(make(params, choice=choice), row, 20) for choice in range(3)]


def test_rounding_of_logits_rarely_changes_a_draw() -> None:
    """Batches of other shapes give logits that differ by rounding, so nearly equal tokens may swap places."""
    row = logits(scale=2.0)
    shaken = row + np.random.default_rng(1).normal(scale=1e-4, size=len(row)).astype(np.float32)
    params = SamplingParams(seed=1, top_p=0.95)
    assert sum(a == b for a, b in zip(draws(make(params), row), draws(make(params), shaken), strict=True)) >= 290


@pytest.mark.parametrize(
    ("params", "winner"),
    [
        (SamplingParams(temperature=0, repeat_penalty=2.0), 1),
        (SamplingParams(temperature=0, frequency_penalty=1.5), 1),
        (SamplingParams(temperature=0, presence_penalty=1.5), 1),
        (SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=1), 0),
        (SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=0), 0),
        (SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=-1), 1),
        (SamplingParams(temperature=0, logit_bias=((0, -5.0),)), 1),
        (SamplingParams(temperature=0, logit_bias=((2, 100.0), (-1, 1.0), (99, 1.0))), 2),
    ],
)
def test_penalties_and_biases_change_the_likeliest_token(params: SamplingParams, winner: int) -> None:
    row = np.array([3.0, 2.0, 1.0, 0.5], dtype=np.float32)
    assert make(params, end=None).sample(row, [0, 3], 2).token == winner
    assert row.tolist() == [3.0, 2.0, 1.0, 0.5]


def test_dry_breaks_a_loop() -> None:
    row = np.zeros(300, dtype=np.float32)
    row[3] = 2.0
    text = [1, 2, 3, 9, 1, 2]
    params = SamplingParams(temperature=0, dry_multiplier=3.0)
    assert make(params).sample(row, text, 0).token != 3
    assert make(params).sample(row, [1, 2, 3, 9, 2, 2], 0).token == 3


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_k=3, seed=1)])
def test_a_text_does_not_end_before_min_tokens(params: SamplingParams) -> None:
    row = logits(size=300)
    row[END] = 30.0
    sampler = make(params, stopping=StopConditions(min_tokens=4))
    drawn = draws(sampler, row, 6, prompt=[1, 2, 3])
    assert END not in drawn[:4]
    assert drawn[4:] == [END, END]
    assert END not in draws(make(params, stopping=StopConditions(ignore_eos=True)), row, 20)


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(seed=1), SamplingParams(seed=1, top_p=0.9)])
def test_a_grammar_limits_the_draw_and_accepts_the_drawn_token(params: SamplingParams) -> None:
    row = logits(size=300)
    best = int(row.argmax())
    few = [token for token in (10, 20, 30, 40) if token != best]
    grammar = Scripted(only(*few), all_but(best), None, only(best))
    sampler = make(params, grammar=grammar)
    text: list[int] = []
    for _ in range(4):
        text.append(sampler.sample(row, text, 0).token)
        sampler.accept(text[-1])
    assert text[0] in few
    assert text[1] != best
    assert text[3] == best
    assert grammar.accepted == text


def test_draws_under_a_grammar_have_the_probabilities_of_the_allowed_tokens() -> None:
    row = np.log(np.array([0.5, 0.2, 0.2, 0.1])).astype(np.float32)
    grammar: Matcher = Scripted(np.array([False, True, True, True]))
    drawn = draws(make(SamplingParams(seed=5), grammar=grammar, end=None), row, 5000)
    assert chi_square(drawn, {1: 0.4, 2: 0.4, 3: 0.2})


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(mirostat=2)])
@pytest.mark.parametrize(
    ("mask", "stopping"),
    [
        (only(), StopConditions()),
        (only(END), StopConditions()),
        (only(END), StopConditions(min_tokens=5)),
        (only(END), StopConditions(ignore_eos=True)),
    ],
)
def test_the_text_ends_if_a_grammar_allows_nothing_else(
    params: SamplingParams, mask: NDArray[np.bool_], stopping: StopConditions
) -> None:
    assert make(params, stopping=stopping, grammar=Scripted(mask)).sample(logits(size=300), [], 0).token == END


def test_the_likeliest_end_token_ends_the_text() -> None:
    row = logits(size=300)
    sampler = Sampler(
        Stages(SamplingParams(), lambda _: b""),
        StopConditions(),
        end_tokens=frozenset({3, 4, 5}),
        grammar=Scripted(only()),
    )
    assert sampler.sample(row, [], 0).token == 3 + int(row[3:6].argmax())


anything = st.floats()
whole = st.integers(-(2**31), 2**31)


@given(
    hnp.arrays(np.float32, st.integers(1, 1200), elements=st.floats(-100, 100, width=32) | st.just(-np.inf)),
    st.builds(
        SamplingParams,
        temperature=anything,
        top_k=whole,
        top_p=anything,
        min_p=anything,
        typical_p=anything,
        repeat_penalty=anything,
        repeat_last_n=st.integers(-5, 2**31),
        frequency_penalty=anything,
        presence_penalty=anything,
        dry_multiplier=anything,
        dry_base=anything,
        dry_allowed_length=whole,
        dry_penalty_last_n=st.integers(-5, 2**31),
        xtc_probability=anything,
        xtc_threshold=anything,
        mirostat=st.sampled_from([0, 1, 2]),
        mirostat_tau=anything,
        mirostat_eta=anything,
        logit_bias=st.lists(st.tuples(whole, anything), max_size=3).map(tuple),
        seed=st.one_of(st.none(), st.integers()),
    ),
    st.booleans(),
)
def test_any_parameters_draw_a_token_of_the_vocabulary(row: Row, params: SamplingParams, masked: bool) -> None:
    grammar = Scripted(*[np.arange(len(row)) % 3 == 0] * 4) if masked else None
    sampler = make(params, end=0, grammar=grammar, top_logprobs=2)
    text = [0, len(row) - 1, 0]
    for _ in range(3):
        text.append(sampler.sample(row, text, 0).token)
        sampler.accept(text[-1])
        assert 0 <= text[-1] < len(row)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_k=5, top_p=0.5)])
def test_invalid_logits_do_not_crash_the_sampler(broken: float, params: SamplingParams) -> None:
    row = logits(size=300)
    row[5] = broken
    assert 0 <= make(params, top_logprobs=3).sample(row, [], 0).token < 300
    assert 0 <= make(params).sample(np.full(300, broken, np.float32), [], 0).token < 300
