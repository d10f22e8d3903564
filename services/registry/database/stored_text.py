"""Makes text from nodes and workers fit for a row. Pure."""

from __future__ import annotations

LIMIT = 2000


def stored_text(text: str) -> str:
    """The first LIMIT characters, without zero bytes: PostgreSQL's text type cannot hold them, and a worker's last line may."""
    clean = text[:LIMIT].replace("\0", "\ufffd")
    return clean if len(text) <= LIMIT else f"{clean}..."
