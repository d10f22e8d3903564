"""The interactive chat of `corral run`."""

from __future__ import annotations

from collections.abc import Sequence

from services.cli.answer import Interrupted, StreamedAnswer
from services.cli.config import state_folder
from services.cli.console import err, out
from services.cli.errors import CommandError
from services.cli.message_input import MessageInput

HELP = """\
  /clear    forget the conversation
  /bye      leave (also /exit, Ctrl-D)
  /?        this help
  \"""       starts and ends a message of several lines
  Ctrl-C    stops an answer
"""


class Chat:
    """Keeps the conversation so far. If the model has no chat template, it continues each text on its own instead."""

    def __init__(self, streamed: StreamedAnswer, *, capabilities: Sequence[str]) -> None:
        self._streamed = streamed
        self._chats = "chat" in capabilities
        self._messages: list[dict[str, str]] = []

    def run(self) -> None:
        """Runs the chat until the user leaves."""
        with err.status(f"loading {self._streamed.model}", spinner="dots"):
            self._streamed.load()
        out.print(
            "Send a message (/? for help)"
            if self._chats
            else "This model has no chat template: it continues your text (/? for help)"
        )
        messages = MessageInput(state_folder() / "history")
        try:
            while (text := messages.read()) is not None and self._handle(text.strip()):
                pass
        finally:
            messages.save()

    def _handle(self, text: str) -> bool:
        """Handles one line of input. Returns False if the user wants to leave."""
        match text:
            case "":
                return True
            case "/bye" | "/exit":
                return False
            case "/clear":
                self._messages.clear()
                out.print("Conversation cleared.")
            case "/?" | "/help":
                out.print(HELP)
            case _ if text.startswith("/") and "\n" not in text and "/" not in text[1:]:
                out.print(f"Unknown command '{text.split()[0]}'. Type /? for help.")
            case _:
                self._say(text)
        return True

    def _say(self, text: str) -> None:
        """Sends one message. If it fails, prints the error and drops the message, so that the chat can continue."""
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
                return self._streamed.complete(text)
            return self._streamed.chat([*self._messages, {"role": "user", "content": text}])
        except Interrupted as stopped:
            return stopped.said
