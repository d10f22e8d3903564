"""Texts of about as many tokens as asked for, new for every seed and the same for every server.

Plain words, each of which is one token or little more in both models' vocabularies; what a prompt really had is in the
server's usage.
"""

from __future__ import annotations

from random import Random

_WHO = ("sailor", "farmer", "teacher", "doctor", "king", "child", "soldier", "writer", "painter", "hunter", "singer", "judge")
_HOW = ("old", "young", "quiet", "brave", "tired", "clever", "poor", "kind", "strange", "proud", "lonely", "gentle")
_DID = ("found", "lost", "bought", "carried", "broke", "hid", "painted", "sold", "followed", "watched", "wanted", "left")
_WHAT = ("stone", "book", "horse", "boat", "letter", "lamp", "dog", "bread", "key", "coat", "clock", "bird")
_WHERE = ("river", "market", "forest", "church", "bridge", "garden", "village", "castle", "island", "harbor", "road", "hill")
_WHEN = ("morning", "evening", "winter", "summer", "night", "autumn")

#: What both models' tokenizers make of a sentence.
_SENTENCE_TOKENS = 13


def prose(seed: str, tokens: int) -> str:
    """Sentences that follow from the seed."""
    random = Random(seed)
    return " ".join(_sentence(random) for _ in range(max(1, round(tokens / _SENTENCE_TOKENS))))


def question(seed: str) -> str:
    """Some twenty tokens."""
    random = Random(seed)
    return f"Who {random.choice(_DID)} the {random.choice(_HOW)} {random.choice(_WHAT)} near the {random.choice(_WHERE)}, and why did nobody see it?"


def _sentence(random: Random) -> str:
    return (
        f"The {random.choice(_HOW)} {random.choice(_WHO)} {random.choice(_DID)} a {random.choice(_HOW)} {random.choice(_WHAT)} "
        f"near the {random.choice(_WHERE)} that {random.choice(_WHEN)}."
    )
