"""The error tree. Each class has an HTTP status and a code; between processes an error travels as its code and message.

CorralError                       500  internal_error
├── BadRequest                    400  invalid_request
│   ├── ContextLengthExceeded     400  context_length_exceeded
│   └── UnsupportedCapability     400  unsupported_capability
├── Unauthenticated               401  unauthenticated
├── Forbidden                     403  forbidden
├── NotFound                      404  not_found
│   └── ModelNotFound             404  model_not_found
├── RequestTimedOut               408  request_timed_out
├── Conflict                      409  conflict
├── BodyTooLarge                  413  body_too_large
├── HeadersTooLarge               431  headers_too_large
├── CallerLimited                 429  rate_limited
├── Unavailable                   503  unavailable
│   ├── QueueFull                 503  queue_full
│   └── QueueMemoryFull           503  queue_memory_full
├── InvalidModelFile              500  invalid_model_file
├── ModelLoadFailed               500  model_load_failed
│   ├── ModelRefused              500  model_refused
│   └── InsufficientMemory        500  insufficient_memory
├── DeadlineExceeded              504  deadline_exceeded
├── WorkerLost                    500  worker_lost
├── RedisRefused                  500  redis_refused
└── ProtocolMismatch              500  protocol_mismatch

Each dialect renders the message in its own error format.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class CorralError(Exception):
    """Base class of our errors.

    `message` is shown to the caller, so it must not contain secrets. `retry_after_s`: when a retry may succeed, None if it would fail
    again. `field`: the invalid field of the request, empty if the error is not about one field.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retry_after_s: int | None = None
    field: str = ""

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class BadRequest(CorralError):
    """The request is malformed or asks for something impossible."""

    code = "invalid_request"
    status = 400

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ContextLengthExceeded(BadRequest):
    """The prompt does not fit in the replica's context."""

    code = "context_length_exceeded"


class UnsupportedCapability(BadRequest):
    """The model does not support this, for example chat (it has no template), tools, thinking or insertion."""

    code = "unsupported_capability"


class Unauthenticated(CorralError):
    """The API key is missing, unknown or revoked."""

    code = "unauthenticated"
    status = 401


class Forbidden(CorralError):
    """The API key is valid but does not permit this."""

    code = "forbidden"
    status = 403


class NotFound(CorralError):
    """The requested object does not exist."""

    code = "not_found"
    status = 404


class ModelNotFound(NotFound):
    """No model has this name and tag."""

    code = "model_not_found"


class RequestTimedOut(CorralError):
    """The client took too long to send its request, or to read the answer."""

    code = "request_timed_out"
    status = 408


class Conflict(CorralError):
    """The object's current state does not allow this."""

    code = "conflict"
    status = 409


class BodyTooLarge(CorralError):
    """The request's body is larger than the server accepts."""

    code = "body_too_large"
    status = 413


class HeadersTooLarge(CorralError):
    """The request's headers are larger than the server accepts."""

    code = "headers_too_large"
    status = 431


class CallerLimited(CorralError):
    """The caller has reached its own limit on waiting requests. Other callers are not affected."""

    code = "rate_limited"
    status = 429
    retry_after_s = 1


class Unavailable(CorralError):
    """A part of the platform that the request needs is temporarily unavailable."""

    code = "unavailable"
    status = 503
    retry_after_s = 1


class QueueFull(Unavailable):
    """The version's queue has reached its limit, or the request would probably not start before its timeout."""

    code = "queue_full"


class QueueMemoryFull(Unavailable):
    """Redis is at its memory limit (`maxmemory`)."""

    code = "queue_memory_full"
    retry_after_s = 10


class InvalidModelFile(CorralError):
    """The file is not a GGUF, is truncated, or fails its checksum."""

    code = "invalid_model_file"


class ModelLoadFailed(CorralError):
    """A replica of the version could not be started. The message gives the reason."""

    code = "model_load_failed"


class ModelRefused(ModelLoadFailed):
    """llama.cpp cannot load the model, or not with these settings. A retry with the same settings fails again."""

    code = "model_refused"


class InsufficientMemory(ModelLoadFailed):
    """The replica needs more memory than is available."""

    code = "insufficient_memory"


class DeadlineExceeded(CorralError):
    """The request waited in the queue for longer than its timeout."""

    code = "deadline_exceeded"
    status = 504


class WorkerLost(CorralError):
    """The answer could not be completed because its workers died, fell silent or failed."""

    code = "worker_lost"


class RedisRefused(CorralError):
    """Redis answered a command with an error: a bug in the service, a wrong setting, or unexpected data under a key."""

    code = "redis_refused"


class ProtocolMismatch(CorralError):
    """A message of another protocol version, or one that does not decode."""

    code = "protocol_mismatch"


def _tree(root: type[CorralError]) -> Iterator[type[CorralError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


BY_CODE: dict[str, type[CorralError]] = {error.code: error for error in _tree(CorralError)}


def from_code(code: str, message: str, *, field: str = "") -> CorralError:
    """The error of the class with this code. A code that this release does not know becomes an internal error."""
    error = BY_CODE.get(code, CorralError)(message)
    error.field = field
    return error
