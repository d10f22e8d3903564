"""How every service writes its log: lines for people, or one JSON object for each event.

A message that begins with `request %s` is about that request, and its object says the id in a field `request`. What happens to each
request, from the gateway to the worker, is told by `note`, in JSON alone: for people it would be a line or two for every answer.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

LogFormat = Literal["text", "json"]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_ABOUT_REQUEST = "request %s"

#: The events of single requests.
_requests = logging.getLogger("corral.requests")


def configure(service: str, form: LogFormat, *, level: str = "INFO") -> None:
    """Of the whole process, once."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(service) if form == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    _requests.setLevel(logging.NOTSET if form == "json" else logging.CRITICAL)


def note(event: str, request: str, **fields: object) -> None:
    """Something happened to the request. A field that is None is left out."""
    if _requests.isEnabledFor(logging.INFO):
        _requests.info(event, extra={"fields": {"request": request, **fields}})


class JsonFormatter(logging.Formatter):
    """`service` is told in every line, so that those of several may be read together."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "event": record.getMessage(),
        }
        if isinstance(record.msg, str) and record.msg.startswith(_ABOUT_REQUEST) and isinstance(record.args, tuple):
            line["request"] = record.args[0]
        fields: dict[str, object] = getattr(record, "fields", {})
        line |= {name: value for name, value in fields.items() if value is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()
