"""Secrets that come as files, and secrets that are none.

Every setting can be a file of the variable's name in lower case (`corral_redis_url`) in the folder where Docker, Compose and
Kubernetes put secrets. A variable of the environment wins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

FOLDER = Path("/run/secrets")

#: What examples say where a secret belongs.
PLACEHOLDER = "changethis"


def secrets_folder() -> Path | None:
    """None where there is none, which pydantic would warn of. Of several base classes' the last one's counts: each has to say it."""
    return FOLDER if FOLDER.is_dir() else None


def refuse_placeholder(value: str) -> str:
    """Raises ValueError where somebody kept what an example says."""
    if PLACEHOLDER in value.lower():
        raise ValueError("still holds the placeholder; put a secret of your own there")
    return value


#: A URL that holds a password.
SecretUrl = Annotated[str, AfterValidator(refuse_placeholder)]
