"""Errors of commands: one sentence for the user on stderr, and exit code 1.

CommandError
├── RequestRefused       the server answered with an error; carries its HTTP status
├── Unreachable          the server can't be reached, or the connection broke
└── ProcessStartFailed   a process of the embedded platform did not start
"""

from __future__ import annotations

import httpx
import typer

#: Errors that may go away on retry, or once the server is running. Any other httpx error is a mistake in the command, its
#: settings or the answer.
OUTAGES = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)


class CommandError(typer.TyperException):
    """An error shown to the user as one sentence. `message` names the cause and, if there is one, the fix."""


class RequestRefused(CommandError):
    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(CommandError):
    """The server can't be reached, or the connection broke."""


class ProcessStartFailed(CommandError):
    """A process of the platform kept exiting before it was ready, or never became ready."""
