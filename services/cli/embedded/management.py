"""What `corral up` asks of its registry: the demonstration model, and the first key.

It asks the registry itself, with the platform's own token: a gateway on a public address would want a key, and at the first
start there is none.
"""

from __future__ import annotations

from typing import Any

import httpx

from services.cli.errors import CommandError, Unreachable
from services.cli.pull import PullDisplay
from services.cli.server import parse_line

FIRST_KEY = "admin"


class Management:
    """Raises CommandError."""

    def __init__(self, client: httpx.AsyncClient, url: str, token: str) -> None:
        self._client = client
        self._url = f"{url}/registry/v1"
        self._headers = {"Authorization": f"Bearer {token}"}

    async def has_node(self) -> bool:
        """Whether there is a machine to pull to and to run on."""
        response = await self._request("GET", "/nodes")
        return response.is_success and any(node["state"] == "ready" for node in response.json()["nodes"])

    async def has_model(self, name: str) -> bool:
        response = await self._request("GET", "/models/show", params={"name": name})
        return response.is_success

    async def pull(self, name: str, display: PullDisplay) -> None:
        body = {"model": name, "as": None, "stream": True}
        try:
            async with self._client.stream(
                "POST", f"{self._url}/pull", json=body, headers=self._headers, timeout=None
            ) as response:
                if response.is_error:
                    await response.aread()
                    raise CommandError(f"the registry answered {response.status_code}: {response.text[:200]}")
                async for line in response.aiter_lines():
                    display.show(parse_line(line))
                display.finish()
        except httpx.HTTPError as error:
            raise Unreachable(f"the registry broke off ({type(error).__name__})") from None

    async def make_first_key(self) -> str | None:
        """The secret of a new admin key; None where there is a key already."""
        keys = (await self._request("GET", "/keys")).json()["keys"]
        if any(key["revoked_at"] is None for key in keys):
            return None
        response = await self._request("POST", "/keys", json={"name": FIRST_KEY, "team": "", "admin": True})
        return str(response.json()["secret"]) if response.is_success else None

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._client.request(method, f"{self._url}{path}", headers=self._headers, **options)
        except httpx.HTTPError as error:
            raise Unreachable(f"the registry does not answer ({type(error).__name__})") from None
