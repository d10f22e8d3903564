"""The error tree. The HTTP status and the code stand on the class; errors cross a process boundary as (code, message).

CorralError                       500  internal_error
├── BadRequest                    400  invalid_request
│   ├── ContextLengthExceeded     400  context_length_exceeded
│   └── UnsupportedCapability     400  unsupported_capability
├── Unauthenticated               401  unauthenticated
├── Forbidden                     403  forbidden
├── NotFound                      404  not_found
│   └── ModelNotFound             404  model_not_found
├── Conflict                      409  conflict
├── CallerLimited                 429  rate_limited
├── Unavailable                   503  unavailable
│   └── QueueFull                 503  queue_full
├── InvalidModelFile              500  invalid_model_file
├── ModelLoadFailed               500  model_load_failed
│   ├── ModelRefused              500  model_refused
│   └── InsufficientMemory        500  insufficient_memory
├── DeadlineExceeded              504  deadline_exceeded
├── WorkerLost                    500  worker_lost
└── ProtocolMismatch              500  protocol_mismatch

A dialect renders the message in its own error shape. 4xx are expected refusals and are never logged as errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class CorralError(Exception):
    """A failure with a code and an HTTP status; `message` is written for the caller and holds no secret. `retry_after_s`: when the
    same may be worth another try, None where it is not."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retry_after_s: int | None = None

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class BadRequest(CorralError):
    """The caller asked for something malformed or impossible."""

    code = "invalid_request"
    status = 400


class ContextLengthExceeded(BadRequest):
    """The prompt has more tokens than the replica's context."""

    code = "context_length_exceeded"


class UnsupportedCapability(BadRequest):
    """The model cannot do this: chat without a template, tools, thinking, insert."""

    code = "unsupported_capability"


class Unauthenticated(CorralError):
    """No key, or one that is unknown or revoked."""

    code = "unauthenticated"
    status = 401


class Forbidden(CorralError):
    """The key is good, but does not allow this."""

    code = "forbidden"
    status = 403


class NotFound(CorralError):
    """No such thing."""

    code = "not_found"
    status = 404


class ModelNotFound(NotFound):
    """No tag of that name."""

    code = "model_not_found"


class Conflict(CorralError):
    """The thing's present state does not allow this."""

    code = "conflict"
    status = 409


class CallerLimited(CorralError):
    """The caller has as many requests waiting as it may; others may still send theirs."""

    code = "rate_limited"
    status = 429
    retry_after_s = 1


class Unavailable(CorralError):
    """A part of the platform that this needs does not answer."""

    code = "unavailable"
    status = 503
    retry_after_s = 1


class QueueFull(Unavailable):
    """The version's queue holds as many requests as it may."""

    code = "queue_full"


class InvalidModelFile(CorralError):
    """The file is no GGUF, is cut short, or fails its checksum."""

    code = "invalid_model_file"


class ModelLoadFailed(CorralError):
    """No replica of the version could be brought up; the message says why."""

    code = "model_load_failed"


class ModelRefused(ModelLoadFailed):
    """llama.cpp does not take the model, or not with these settings; the same try gives the same answer."""

    code = "model_refused"


class InsufficientMemory(ModelLoadFailed):
    """The replica needs more memory than there is."""

    code = "insufficient_memory"


class DeadlineExceeded(CorralError):
    """The request could not be begun in the time that it was given."""

    code = "deadline_exceeded"
    status = 504


class WorkerLost(CorralError):
    """The worker died or went silent in the middle of an answer."""

    code = "worker_lost"


class ProtocolMismatch(CorralError):
    """A message of another protocol version."""

    code = "protocol_mismatch"


def _tree(root: type[CorralError]) -> Iterator[type[CorralError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


BY_CODE: dict[str, type[CorralError]] = {error.code: error for error in _tree(CorralError)}


def from_code(code: str, message: str) -> CorralError:
    """The error that `code` names; a code that this release does not know is an internal error."""
    return BY_CODE.get(code, CorralError)(message)
