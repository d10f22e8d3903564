from datetime import UTC, datetime, timedelta

import pytest

from services.cli.quantities import binary_size_text, count_text, duration_text, size_text, time_text

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1500, "1.5 KB"),
        (98_373_774, "98 MB"),
        (4_683_073_184, "4.7 GB"),
        (2 * 10**12, "2 TB"),
    ],
)
def test_sizes_are_decimal(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("size", "text"), [(1023, "1023 B"), (2**30, "1.0 GiB"), (8_160_000_000, "7.6 GiB"), (2**41, "2.0 TiB")]
)
def test_memory_sizes_are_binary(size: int, text: str) -> None:
    assert binary_size_text(size) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12"), (134_515_008, "134.52M"), (7_241_732_096, "7.24B"), (5_000, "5.00K")])
def test_counts_have_a_short_form(count: int, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("ahead", "text"),
    [
        (timedelta(milliseconds=-200), "Less than a second ago"),
        (timedelta(seconds=-1), "1 second ago"),
        (timedelta(seconds=-59), "59 seconds ago"),
        (timedelta(seconds=-60), "About a minute ago"),
        (timedelta(minutes=4, seconds=59), "4 minutes from now"),
        (timedelta(hours=-1), "About an hour ago"),
        (timedelta(hours=-47), "47 hours ago"),
        (timedelta(days=-2), "2 days ago"),
        (timedelta(days=-13), "13 days ago"),
        (timedelta(days=-14), "2 weeks ago"),
        (timedelta(days=-61), "2 months ago"),
        (timedelta(days=-729), "24 months ago"),
        (timedelta(days=-800), "2 years ago"),
        (timedelta(days=365 * 292), "Forever"),
    ],
)
def test_times_are_relative_to_now(ahead: timedelta, text: str) -> None:
    assert time_text(NOW + ahead, now=NOW) == text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0µs"),
        (1_500, "1.5µs"),
        (81_200_000, "81.2ms"),
        (1_234_567_890, "1.234568s"),
        (2_000_000_000, "2s"),
        (62_500_000_000, "1m2.5s"),
    ],
)
def test_durations_have_a_short_form(nanoseconds: int, text: str) -> None:
    assert duration_text(nanoseconds) == text
