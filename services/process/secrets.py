"""Settings from secret files, and a check for placeholders.

Every setting can be given as a file in FOLDER, where Docker, Docker Compose and Kubernetes put secrets. The file has the variable's name
in lower case (`corral_redis_url`). An environment variable overrides the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

FOLDER = Path("/run/secrets")

#: The placeholder for a secret in our example configurations.
PLACEHOLDER = "changethis"


def secrets_folder() -> Path | None:
    """The folder of secret files for pydantic's `secrets_dir`, or None if it does not exist, since pydantic would warn about that.

    Every base class of a settings class must set it, because the last one's value wins.
    """
    return FOLDER if FOLDER.is_dir() else None


def refuse_placeholder(value: str) -> str:
    """Raises ValueError if the value still contains the placeholder of an example."""
    if PLACEHOLDER in value.lower():
        raise ValueError("still contains the placeholder; replace it with your own secret")
    return value


#: A URL that holds a password.
SecretUrl = Annotated[str, AfterValidator(refuse_placeholder)]
