"""Ids of tool calls. They follow from the request, so that an answer which another worker continues keeps them."""

from __future__ import annotations

import hashlib
import string

_ALPHABET = string.ascii_lowercase + string.digits


def call_id(request: str, choice: int, index: int) -> str:
    """`call_` and 8 characters of [a-z0-9], as Ollama's are."""
    return "call_" + letters(f"{request}/{choice}/{index}", 8)


def letters(seed: str, length: int) -> str:
    """Characters of [a-z0-9] that look random and depend on the seed alone."""
    number = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=16).digest(), "big")
    found = ""
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        found += _ALPHABET[digit]
    return found
