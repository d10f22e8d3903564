"""Configures the log of a service: lines of text, or one JSON object per event.

In JSON, a message whose first value is `request=%s` also puts the request id into the field `request`. The events of single
requests, from the gateway to the worker, are logged with `log_event` and appear only in JSON. The text log has one line per finished
request if `log_requests` is set.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

LogFormat = Literal["text", "json"]

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_ABOUT_REQUEST = re.compile(r"[^%]*\brequest=%s")

#: Logger for the events of single requests.
_requests = logging.getLogger("corral.requests")

#: Logger for the access log: one line of text per finished request.
ACCESS_LOGGER = "corral.access"
access = logging.getLogger(ACCESS_LOGGER)


def configure(service: str, form: LogFormat, *, level: str = "INFO", log_requests: bool = False) -> None:
    """Configures logging for the process; call it once. `log_requests` turns on the access log, which exists only in text."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(service) if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    _requests.setLevel(logging.NOTSET if form == "json" else logging.CRITICAL)
    access.setLevel(logging.INFO if form == "text" and log_requests else logging.CRITICAL)


def log_event(event: str, request: str, **fields: object) -> None:
    """Logs an event of one request. Leaves out fields that are None."""
    if _requests.isEnabledFor(logging.INFO):
        _requests.info(event, extra={"fields": {"request": request, **fields}})


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object. Every object names the `service`, so that several logs can be merged."""

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
        if isinstance(record.msg, str) and _ABOUT_REQUEST.match(record.msg) and isinstance(record.args, tuple):
            line["request"] = record.args[0]
        fields: dict[str, object] = getattr(record, "fields", {})
        line |= {name: value for name, value in fields.items() if value is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()
