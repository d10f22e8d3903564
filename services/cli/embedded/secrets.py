"""Passwords shared by the platform's processes: made on the first start, kept in `secrets.json` (mode 0600), never printed or
passed as arguments.

Only `corral up` writes the file.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from services.cli.errors import CommandError


@dataclass(frozen=True, repr=False)
class Secrets:
    database_password: str
    valkey_password: str
    registry_token: str


def load_secrets(path: Path) -> Secrets:
    """Loads the secrets, or makes them if there is no file. Raises CommandError if the file is damaged."""
    try:
        values = json.loads(path.read_text())
        return Secrets(**{field.name: values[field.name] for field in fields(Secrets)})
    except FileNotFoundError:
        return _make(path)
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"{path} is damaged; remove it, and Corral creates new secrets") from None


def _make(path: Path) -> Secrets:
    made = Secrets(**{field.name: secrets.token_urlsafe(32) for field in fields(Secrets)})
    partial = path.with_suffix(".new")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(made), file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    return made
