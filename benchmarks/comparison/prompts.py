"""Texts of about the requested number of tokens, different for every seed and the same for every server.

They consist of plain words, each of which is about one token in both models' vocabularies. The exact number is in the server's
usage.
"""

from __future__ import annotations

from random import Random

_WHO = ("sailor", "farmer", "teacher", "doctor", "king", "child", "soldier", "writer", "painter", "hunter", "singer", "judge")
_HOW = ("old", "young", "quiet", "brave", "tired", "clever", "poor", "kind", "strange", "proud", "lonely", "gentle")
_DID = ("found", "lost", "bought", "carried", "broke", "hid", "painted", "sold", "followed", "watched", "wanted", "left")
_WHAT = ("stone", "book", "horse", "boat", "letter", "lamp", "dog", "bread", "key", "coat", "clock", "bird")
_WHERE = ("river", "market", "forest", "church", "bridge", "garden", "village", "castle", "island", "harbor", "road", "hill")
_WHEN = ("morning", "evening", "winter", "summer", "night", "autumn")

#: The tokens of a sentence in both models' tokenizers.
_SENTENCE_TOKENS = 13


def prose(seed: str, tokens: int) -> str:
    """Sentences that depend only on the seed."""
    random = Random(seed)
    return " ".join(_sentence(random) for _ in range(max(1, round(tokens / _SENTENCE_TOKENS))))


def question(seed: str) -> str:
    """About twenty tokens."""
    random = Random(seed)
    return f"Who {random.choice(_DID)} the {random.choice(_HOW)} {random.choice(_WHAT)} near the {random.choice(_WHERE)}, and why did nobody see it?"


def _sentence(random: Random) -> str:
    return (
        f"The {random.choice(_HOW)} {random.choice(_WHO)} {random.choice(_DID)} a {random.choice(_HOW)} {random.choice(_WHAT)} "
        f"near the {random.choice(_WHERE)} that {random.choice(_WHEN)}."
    )
