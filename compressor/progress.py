"""What the user sees while work goes on: bars on a terminal, plain lines in a pipe, and a log file either way."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress as RichProgress, TextColumn, TimeRemainingColumn

_PIPE_SECONDS = 15.0  # between two lines about the same work where there is no terminal


class Progress:
    """Writes to `console` (standard error) and appends to a log file.

    Args:
        console: where people read; None: nowhere.
        log: file that gets every line with its time; None: none.
    """

    def __init__(self, console: Console | None = None, log: Path | None = None) -> None:
        self._console = console
        self._log = log

    def logged(self, log: Path) -> "Progress":
        """The same, with a log file."""
        return Progress(self._console, log)

    def say(self, text: str) -> None:
        """One line."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.record(text)

    def record(self, text: str) -> None:
        """One line for the log only."""
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as stream:
                stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    @contextlib.contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Yield `advance(done, detail)`; `done` counts from 0 to `total`."""
        if self._console is None:
            yield lambda done, detail: None
        elif self._console.is_terminal:
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
            )
            with RichProgress(*columns, console=self._console, transient=True) as progress:
                task = progress.add_task(title, total=total, detail="")
                yield lambda done, detail: progress.update(task, completed=done, detail=detail)
        else:
            yield self._lines(title, total)

    def _lines(self, title: str, total: int) -> Callable[[int, str], None]:
        started = last = time.monotonic()

        def advance(done: int, detail: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _PIPE_SECONDS and 0 < done < total:
                left = (now - started) / done * (total - done)
                self.say(f"  {title}: {done}/{total}, about {left:.0f} s left {detail}")
                last = now

        return advance
