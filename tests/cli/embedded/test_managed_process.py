import pytest

from services.cli.embedded.managed_process import Backoff, describe_exit


def test_repeated_crashes_wait_longer_each_time() -> None:
    backoff = Backoff()
    assert [backoff.after(lived_s=1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_minute_without_a_crash_resets_the_backoff() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.after(lived_s=1)
    assert [backoff.after(lived_s=61), backoff.after(lived_s=1)] == [0.5, 1]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-9, "was killed by SIGKILL"),
        (-64, "was killed by SIGRTMAX"),
        (-99, "was killed by signal 99"),
    ],
)
def test_exit_codes_are_described(code: int, text: str) -> None:
    assert describe_exit(code) == text
