"""How much of a prompt may be computed in the batch of the running answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.worker.engine.pace import Pace

TILE = 64
BATCH = 512

speeds = st.floats(1e-6, 1.0)
counts = st.integers(1, 256)


def pace_at(token_s: float, *, prefill_s: float = 0.6) -> Pace:
    """A pace that has measured one batch of prompt tokens at this speed."""
    pace = Pace(prefill_s=prefill_s, batch_tokens=BATCH)
    pace.observe(num_prefill=128, num_tokens=128, seconds=128 * token_s)
    return pace


@given(token_s=speeds, decoding=counts)
def test_a_batch_fills_whole_tiles_and_always_advances(token_s: float, decoding: int) -> None:
    prompt = pace_at(token_s).prefill_tokens(1, decoding)
    assert 0 < prompt <= BATCH
    assert prompt == BATCH or (prompt + decoding) % TILE == 0


@given(token_s=speeds, decoding=st.integers(1, 32))
def test_a_batch_takes_about_its_time(token_s: float, decoding: int) -> None:
    prompt = pace_at(token_s).prefill_tokens(1, decoding)
    if TILE < prompt < BATCH:
        assert abs((prompt * token_s - 0.6) / token_s) <= TILE / 2 + 1


@given(token_s=speeds, prefilling=st.integers(1, 32), decoding=st.integers(1, 32))
def test_more_waiting_prompts_get_no_fewer_tokens(token_s: float, prefilling: int, decoding: int) -> None:
    pace = pace_at(token_s)
    assert pace.prefill_tokens(prefilling + 1, decoding) >= pace.prefill_tokens(prefilling, decoding)


def test_a_fixed_number_is_used_as_it_is() -> None:
    assert Pace(prefill_s=0.6, batch_tokens=BATCH, fixed=100).prefill_tokens(1, 8) == 100
    assert Pace(prefill_s=0.6, batch_tokens=BATCH, fixed=1000).prefill_tokens(1, 8) == BATCH


def test_small_batches_do_not_change_the_measured_speed() -> None:
    pace = pace_at(0.01)
    before = pace.prefill_tokens(1, 4)
    pace.observe(num_prefill=4, num_tokens=8, seconds=10.0)
    assert pace.prefill_tokens(1, 4) == before
