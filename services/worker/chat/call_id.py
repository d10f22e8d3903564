"""Ids of tool calls. They are derived from the request, so they stay the same if another worker continues the answer."""

from __future__ import annotations

import hashlib
import string

_ALPHABET = string.ascii_lowercase + string.digits


def call_id(request: str, choice: int, index: int) -> str:
    """`call_` and 8 characters of [a-z0-9], like Ollama's ids."""
    return "call_" + letters(f"{request}/{choice}/{index}", 8)


def letters(seed: str, length: int) -> str:
    """Characters of [a-z0-9] that look random but depend only on the seed."""
    number = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=16).digest(), "big")
    found = ""
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        found += _ALPHABET[digit]
    return found
