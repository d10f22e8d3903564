"""What a command says when it cannot do what it was asked: one sentence for a person, on stderr, with exit code 1.

CommandError
├── RequestRefused     the server answered with an error; carries its HTTP status
├── Unreachable        nothing answers at the address
└── PartFailed         a part of the embedded platform did not start
"""

from __future__ import annotations

import typer


class CommandError(typer.TyperException):
    """`message` names the cause and, where there is one, the cure."""


class RequestRefused(CommandError):
    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(CommandError):
    """No connection, or one that broke."""


class PartFailed(CommandError):
    """A part of the platform ended before it was ready, again and again, or never became ready."""
