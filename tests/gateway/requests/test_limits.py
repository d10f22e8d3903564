"""The terms of a request (priority, weight, limits, timeout), from its caller's key and its headers."""

from __future__ import annotations

import msgspec
import pytest

from services.gateway.requests.limits import Limits
from services.protocol.errors import BadRequest
from services.protocol.routes import LOCAL_CALLER, Caller
from services.protocol.waiting import Priority, Terms

LIMITS = Limits(queue=10, caller_share=0.25, timeout_s=60, keep_alive_s=3600)
ADA = Caller("k1", "ada", "", admin=False)


def test_the_default_terms_of_a_key() -> None:
    assert LIMITS.terms(ADA, {}) == Terms(Priority.NORMAL, 1.0, caller_limit=3, timeout_ms=60_000)


def test_terms_set_by_the_key() -> None:
    caller = Caller("k1", "ada", "", admin=False, weight=4.0, priority=Priority.BATCH, max_waiting=9)
    assert LIMITS.terms(caller, {"x-priority": "interactive"}) == Terms(Priority.BATCH, 4.0, caller_limit=9, timeout_ms=60_000)


def test_local_callers_may_fill_the_queue() -> None:
    assert LIMITS.terms(LOCAL_CALLER, {}).caller_limit is None


@pytest.mark.parametrize(
    ("asked_ms", "granted_ms"),
    [(None, None), (0, 0), (60_000, 60_000), (3_600_001, 3_600_000), (10**17, 3_600_000), (-1, 3_600_000)],
    ids=str,
)
def test_only_administrators_may_keep_a_model_loaded_forever(asked_ms: int | None, granted_ms: int | None) -> None:
    assert LIMITS.keep_alive_ms(ADA, asked_ms) == granted_ms
    for admin in (LOCAL_CALLER, Caller("k2", "root", "", admin=True)):
        assert LIMITS.keep_alive_ms(admin, asked_ms) == asked_ms


def test_keep_alive_without_a_limit() -> None:
    assert msgspec.structs.replace(LIMITS, keep_alive_s=None).keep_alive_ms(ADA, -1) == -1


@pytest.mark.parametrize(
    ("headers", "asked", "priority"),
    [
        ({}, None, Priority.NORMAL),
        ({}, Priority.BATCH, Priority.BATCH),
        ({"x-priority": " Interactive "}, None, Priority.INTERACTIVE),
        ({"x-priority": "normal"}, Priority.BATCH, Priority.NORMAL),
    ],
)
def test_priority(headers: dict[str, str], asked: Priority | None, priority: Priority) -> None:
    assert LIMITS.terms(ADA, headers, asked=asked).priority is priority


@pytest.mark.parametrize(
    ("seconds", "timeout_ms"), [("2", 2000), ("0.0001", 1), ("1e9", 12 * 3600 * 1000), ("inf", 12 * 3600 * 1000)]
)
def test_timeout(seconds: str, timeout_ms: int) -> None:
    assert LIMITS.terms(ADA, {"x-request-timeout": seconds}).timeout_ms == timeout_ms


@pytest.mark.parametrize(
    "headers", [{"x-priority": "urgent"}, *({"x-request-timeout": text} for text in ("", "0", "-1", "soon", "nan"))]
)
def test_invalid_headers_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match=next(iter(headers))):
        LIMITS.terms(ADA, headers)
