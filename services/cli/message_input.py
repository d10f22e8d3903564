"""The input line of `corral run`: editing, history, pasted text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from shutil import get_terminal_size

from prompt_toolkit import PromptSession
from prompt_toolkit.data_structures import Size
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.output.vt100 import Vt100_Output

from services.cli.console import out

PROMPT = ">>> "
CONTINUATION = "... "
FENCE = '"""'

#: How many messages the history file keeps.
HISTORY_MESSAGES = 1000


class MessageInput:
    """Reads messages from the terminal. Pasted text becomes part of one message, however many lines it has.

    `history` is the file that keeps messages between chats. It is readable only by its owner, because messages are private.
    """

    def __init__(self, history: Path) -> None:
        self._file = history
        self._history = InMemoryHistory(_load(history))
        self._session: PromptSession[str] = PromptSession(
            history=self._history,
            input=create_input(always_prefer_tty=True),
            # Don't ask the terminal for the cursor position: some never answer.
            output=Vt100_Output(sys.stdout, _terminal_size, enable_cpr=False),
        )

    def read(self) -> str | None:
        """Reads one message: empty after Ctrl-C, None at the end of input."""
        try:
            text = self._session.prompt(PROMPT)
            if text.lstrip().startswith(FENCE):
                text = self._read_fenced(text.lstrip().removeprefix(FENCE))
        except EOFError:
            return None
        except KeyboardInterrupt:
            out.print("Use Ctrl-D or /bye to leave.")
            return ""
        return text

    def save(self) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file.touch(mode=0o600)
        messages = self._history.get_strings()[-HISTORY_MESSAGES:]
        self._file.write_text("".join(f"{json.dumps(message)}\n" for message in messages))

    def _read_fenced(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith(FENCE):
            lines.append(self._session.prompt(CONTINUATION))
        lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
        return "\n".join(lines).strip("\n")


def _terminal_size() -> Size:
    columns, rows = get_terminal_size()
    return Size(rows=rows, columns=columns)


def _load(path: Path) -> list[str]:
    """Loads the history. Skips the plain lines that earlier versions wrote."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith('"') and line.endswith('"')]
