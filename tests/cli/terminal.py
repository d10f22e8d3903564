"""The command in a separate terminal: what a person sees and types."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from types import TracebackType
from typing import Self

import pyte

COLUMNS, ROWS = 100, 40


class Terminal:
    def __init__(
        self, arguments: list[str], environment: dict[str, str], *, columns: int = COLUMNS, deadline_s: float = 60
    ) -> None:
        self._deadline = time.monotonic() + deadline_s
        self._screen = pyte.HistoryScreen(columns, ROWS, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self._fd, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self._process = subprocess.Popen(
            # setsid makes this terminal the command's controlling terminal, so that Ctrl-C becomes a signal.
            ["setsid", "--ctty", sys.executable, "-m", "services.cli", *arguments],
            env=environment | {"TERM": "xterm-256color"},
            stdin=other,
            stdout=other,
            stderr=other,
        )
        os.close(other)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    @property
    def output(self) -> str:
        """The lines that have scrolled off the top of the screen, then the lines on it. Each is as wide as the screen."""
        columns = range(self._screen.columns)
        above = ["".join(line[column].data for column in columns) for line in self._screen.history.top]
        return "\n".join([*above, *self._screen.display])

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def expect(self, text: str, *, times: int = 1) -> None:
        """Returns once `text` has appeared `times` times."""
        while self.output.count(text) < times:
            assert time.monotonic() < self._deadline, f"{text!r} not in {self.output!r}"
            self._read()

    def wait(self) -> int:
        """The exit code, once the command has ended."""
        while self._read():
            assert time.monotonic() < self._deadline, self.output
        return self._process.wait(timeout=5)

    def _read(self) -> bool:
        if select.select([self._fd], [], [], 0.1)[0]:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # Linux reports a terminal that the other side has closed this way
                return False
            self._stream.feed(data)
            return bool(data)
        return True
