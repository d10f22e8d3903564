"""HTTP client for a Corral server: returns JSON or lines of JSON, and turns every failure into one sentence."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from services.cli.address import parse_address
from services.cli.config import load_settings
from services.cli.errors import OUTAGES, CommandError, RequestRefused, Unreachable

#: Longest silence in an answer. It is longer than the gateway waits for the registry, so that the gateway can report that the registry
#: does not answer. Streams have no such limit: loading a large model takes minutes.
READ_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 5


class Server:
    """All methods raise Unreachable if the server doesn't answer, and RequestRefused if it answers with an error."""

    def __init__(self, url: str, *, key: str | None = None, local: bool = False) -> None:
        """For a `local` server, proxies in the environment are ignored."""
        self.url = url
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=not local,
        )

    def get(self, path: str, **params: str) -> Any:
        return self._request("GET", path, params=params)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._request("POST", path, json=body)

    def put(self, path: str, body: dict[str, Any]) -> Any:
        return self._request("PUT", path, json=body)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        return self._request("PATCH", path, json=body)

    def delete(self, path: str, body: dict[str, Any] | None = None) -> None:
        self._request("DELETE", path, json=body)

    def probe(self, path: str) -> tuple[int, Any]:
        """Returns the status and the body, whatever the status is."""
        with self._failures():
            response = self._client.get(path)
        return response.status_code, _body(response)

    def lines(
        self, path: str, body: dict[str, Any], *, headers: dict[str, str] | None = None
    ) -> Generator[dict[str, Any], None, None]:
        """Yields the objects of an NDJSON answer as they arrive, however long it is silent. Closing the iterator aborts the request."""
        with self._failures():
            timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
            with self._client.stream("POST", path, json=body, headers=headers, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    yield parse_line(line)

    def _request(self, method: str, path: str, **options: Any) -> Any:
        with self._failures():
            response = self._client.request(method, path, **options)
        if response.is_error:
            raise _refusal(response)
        return _body(response)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise Unreachable(f'no Corral at {self.url}; start one with "corral up" or set CORRAL_HOST') from None
        except httpx.TimeoutException:
            raise Unreachable(f"{self.url} did not answer in time") from None
        except OUTAGES as error:
            raise Unreachable(f"the connection to {self.url} broke ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise CommandError(f"the request to {self.url} failed ({type(error).__name__})") from error
        except httpx.InvalidURL as error:
            raise CommandError(f"CORRAL_HOST: {error}") from None


def connect() -> Server:
    """A client for the server in the settings."""
    settings = load_settings()
    address = parse_address(settings.host)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return Server(address.url, key=key, local=address.reachable_host in ("localhost", "127.0.0.1", "::1"))


def parse_line(line: str) -> dict[str, Any]:
    """Parses one line of NDJSON. Raises CommandError if it is an error or not an object."""
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CommandError(f"the server sent a line that is not a JSON object: {line[:80]!r}")
    if "error" in value:
        raise CommandError(_error_text(value))
    return value


def _body(response: httpx.Response) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError:
        return response.text


def _refusal(response: httpx.Response) -> RequestRefused:
    body = _body(response)
    text = _error_text(body) if isinstance(body, dict) and "error" in body else f"the server answered {response.status_code}"
    if response.status_code == 401:
        text += "; set CORRAL_API_KEY"
    return RequestRefused(text, status=response.status_code)


def _error_text(body: dict[str, Any]) -> str:
    """The error's message. In the native dialect the error is a string, in OpenAI's an object with a message."""
    error = body["error"]
    return str(error["message"] if isinstance(error, dict) and "message" in error else error)
