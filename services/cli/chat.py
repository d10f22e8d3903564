"""The conversation of `corral run` on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import readline
except ImportError:  # some builds of Python come without; input() then reads plain lines
    readline = None  # type: ignore[assignment]

from services.cli.answer import Generation, Interrupted
from services.cli.config import state_folder
from services.cli.console import err, out
from services.cli.errors import CommandError

PROMPT = ">>> "
CONTINUATION = "... "
FENCE = '"""'
HISTORY_LINES = 1000

HELP = """\
  /clear    forget the conversation
  /bye      leave (also /exit, Ctrl-D)
  /?        this help
  \"""       begins a message of several lines, and ends it
  Ctrl-C    stops an answer
"""


class Chat:
    """Owns the conversation so far. A model without a chat template continues each text by itself instead."""

    def __init__(self, generation: Generation, *, capabilities: Sequence[str]) -> None:
        self._generation = generation
        self._chats = "chat" in capabilities
        self._messages: list[dict[str, str]] = []

    def run(self) -> None:
        """Returns when the user leaves."""
        with err.status(f"loading {self._generation.model}", spinner="dots"):
            self._generation.load()
        out.print(
            "Send a message (/? for help)"
            if self._chats
            else "This model has no chat template: it continues your text (/? for help)"
        )
        history = _load_history()
        try:
            while (text := _read_message()) is not None and self._handle(text.strip()):
                pass
        finally:
            _save_history(history)

    def _handle(self, text: str) -> bool:
        """False to leave."""
        match text:
            case "":
                return True
            case "/bye" | "/exit":
                return False
            case "/clear":
                self._messages.clear()
                out.print("Forgot the conversation.")
            case "/?" | "/help":
                out.print(HELP)
            case _ if text.startswith("/") and "\n" not in text and "/" not in text[1:]:
                out.print(f"Unknown command '{text.split()[0]}'. Type /? for help.")
            case _:
                self._say(text)
        return True

    def _say(self, text: str) -> None:
        """A failure is said and the conversation goes on, without the message that failed."""
        try:
            answer = self._answer(text)
        except CommandError as error:
            err.print(f"Error: {error}")
            return
        self._messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        out.print("\n")

    def _answer(self, text: str) -> str:
        try:
            if not self._chats:
                return self._generation.complete(text)
            return self._generation.chat([*self._messages, {"role": "user", "content": text}])
        except Interrupted as stopped:
            return stopped.said


def _read_message() -> str | None:
    """One message; None at the end of input."""
    try:
        text = input(PROMPT)
        if text.lstrip().startswith(FENCE):
            text = _read_fenced(text.lstrip().removeprefix(FENCE))
    except EOFError:
        out.print()
        return None
    except KeyboardInterrupt:
        out.print("\nUse Ctrl-D or /bye to leave.")
        return ""
    return text


def _read_fenced(first: str) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(FENCE):
        lines.append(input(CONTINUATION))
    lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
    return "\n".join(lines).strip("\n")


def _load_history() -> Path:
    path = state_folder() / "history"
    if readline and path.exists():
        readline.read_history_file(path)
    return path


def _save_history(path: Path) -> None:
    """What the user typed is private: the folder is theirs alone."""
    if not readline or not sys.stdin.isatty():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    readline.set_history_length(HISTORY_LINES)
    readline.write_history_file(path)
    path.chmod(0o600)
