"""What `corral up` needs from the registry: the demo model, and the first API key.

It talks to the registry directly, with the platform's own token. The gateway may require an API key, and on the first start
there is none.
"""

from __future__ import annotations

import secrets
from typing import Any

import httpx

from services.cli.errors import OUTAGES, CommandError, Unreachable
from services.cli.pull import PullDisplay
from services.cli.server import parse_line

FIRST_KEY = "admin"


class Management:
    """All methods raise CommandError."""

    def __init__(self, client: httpx.AsyncClient, url: str, token: str) -> None:
        self._client = client
        self._url = f"{url}/registry/v1"
        self._headers = {"Authorization": f"Bearer {token}"}

    async def has_node(self) -> bool:
        """Whether there is a ready node to pull to and run on."""
        response = await self._request("GET", "/nodes")
        return response.is_success and any(node["state"] == "ready" for node in response.json()["nodes"])

    async def models(self) -> list[str]:
        """Model names, newest first."""
        response = await self._request("GET", "/models")
        return [model["name"] for model in response.json()["models"]] if response.is_success else []

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
        except OUTAGES as error:
            raise Unreachable(f"the connection to the registry broke ({type(error).__name__})") from None

    async def make_first_key(self) -> str | None:
        """Makes an admin key and returns its secret; None if there is an admin key already. Raises CommandError."""
        response = await self._request("GET", "/keys")
        if response.is_error:
            raise CommandError(f"the registry answered {response.status_code}: {response.text[:200]}")
        keys = response.json()["keys"]
        if any(key["admin"] and key["revoked_at"] is None for key in keys):
            return None
        name = FIRST_KEY
        while name in {key["name"].lower() for key in keys if key["revoked_at"] is None}:
            name = f"{FIRST_KEY}-{secrets.token_hex(3)}"
        response = await self._request("POST", "/keys", json={"name": name, "team": "", "admin": True})
        if response.is_error:
            raise CommandError(f"the registry did not create an admin key: {response.text[:200]}")
        return str(response.json()["secret"])

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._client.request(method, f"{self._url}{path}", headers=self._headers, **options)
        except OUTAGES as error:
            raise Unreachable(f"the registry does not answer ({type(error).__name__})") from None
