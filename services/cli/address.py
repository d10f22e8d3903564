"""CORRAL_HOST, as the address that commands send their requests to."""

from __future__ import annotations

from services.cli.errors import CommandError
from services.process.address import Address


def parse_address(text: str) -> Address:
    """Raises CommandError."""
    try:
        address = Address.parse(text)
    except ValueError as error:
        raise CommandError(f"CORRAL_HOST: {error}") from None
    if not address.port:
        raise CommandError("CORRAL_HOST: port 0 cannot receive requests; set the gateway's port")
    return address
