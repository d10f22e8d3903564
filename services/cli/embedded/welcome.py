"""What `corral up` prints when the platform is ready: things to paste."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from services.cli.address import Address

#: Where commands look for a server by themselves.
DEFAULT_URL = "http://127.0.0.1:11434"

QUESTION = "Why is the sky blue?"


def welcome(address: Address, *, model: str, key: str | None) -> str:
    """`key` is the caller's secret where one is needed, or a word that stands for it."""
    python = (
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{address.url}/v1", api_key="{key or "none-needed"}")\n'
        f'print(client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "{QUESTION}"}}])'
        ".choices[0].message.content)"
    )
    header = f" -H 'Authorization: Bearer {key}'" if key else ""
    curl = (
        f"curl {address.url}/v1/chat/completions{header} -H 'Content-Type: application/json' "
        f'-d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}\''
    )
    variables = ([] if address.url == DEFAULT_URL else [f"CORRAL_HOST={address.url}"]) + (
        [f"CORRAL_API_KEY={key}"] if key else []
    )
    run = " ".join([*variables, command(), "run", model])
    return f"\nTry it. In a shell:\n\n{curl}\n\nIn Python, with the openai package:\n\n{python}\n\nOr chat in another terminal:\n\n{run}\n"


def command() -> str:
    """How this terminal reaches the `corral` command."""
    if shutil.which("corral"):
        return "corral"
    script = Path(sys.executable).parent / "corral"
    try:
        return str(script.relative_to(Path.cwd()))
    except ValueError:
        return str(script)
