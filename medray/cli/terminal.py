"""What one command shows: progress and errors on stderr, its result on stdout."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from medray.errors import MedrayError

PLAIN_SECONDS = 15.0  # between two lines about the same thing, where no terminal can redraw one
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Terminal:
    """One command's output, and its exit status: 1 with one line a mistake for a `MedrayError`, 130 for Ctrl-C.

    Args:
        as_json: one object on stdout instead of tables.
        resumes: whether the same command goes on where this one is stopped.
    """

    def __init__(self, *, as_json: bool = False, resumes: bool = True) -> None:
        self.as_json, self.resumes = as_json, resumes
        self.out = Console(soft_wrap=True, highlight=False)
        self.err = Console(stderr=True, soft_wrap=True, highlight=False)
        self._steps: _Redrawn | _Lines = _Redrawn(self.err) if self.err.is_terminal else _Lines(self.err)
        self._start = time.monotonic()

    def __enter__(self) -> Terminal:
        """Starts the clock."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What medray raises on purpose becomes a line and an exit status; anything else is a bug and shows itself."""
        self._steps.close()
        if isinstance(error, KeyboardInterrupt):
            goes_on = " What is finished is kept: the same command goes on from there." if self.resumes else ""
            self.err.print(f"stopped.{goes_on}", markup=False)
            raise typer.Exit(INTERRUPTED) from None
        on_purpose = _on_purpose(error)
        if on_purpose is not None:
            self.fail(str(on_purpose), type(on_purpose).__name__)
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(1) from None

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return round(time.monotonic() - self._start, 3)

    def progress(self, what: str, done: int, total: int) -> None:
        """What is being done, how much of it is, and of how much; 0 = not known."""
        self._steps.update(what, done, total)

    def say(self, text: str) -> None:
        """A line for a person; on stderr where stdout belongs to a program."""
        self._steps.close()
        (self.err if self.as_json else self.out).print(text, markup=False)

    def mark(self, word: str, colour: str, text: str) -> None:
        """A line on stderr that begins with a coloured word."""
        self._steps.close()
        self.err.print(f"[{colour}]{word}[/{colour}] ", end="")
        self.err.print(text, markup=False)

    def show(self, renderable: Any) -> None:
        """A table for a person."""
        self._steps.close()
        if not self.as_json:
            self.out.print(renderable)

    def result(self, facts: Mapping[str, Any]) -> None:
        """The one object of `--json`, with the seconds that it took."""
        self._steps.close()
        if self.as_json:
            sys.stdout.write(json.dumps({**facts, "seconds": self.seconds}, default=_plain, allow_nan=False) + "\n")

    def fail(self, message: str, kind: str = "") -> None:
        """The line that says what went wrong, then exit status 1."""
        self._steps.close()
        for line in message.splitlines():
            self.mark("error", "red", line)
        self.result({"error": kind, "message": message})
        raise typer.Exit(1) from None


def _on_purpose(error: BaseException | None) -> MedrayError | None:
    """The `MedrayError` behind an error; Ray hands it on wrapped, with the worker's traceback as its message."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None) or error.__cause__
        if isinstance(error, MedrayError) and not hasattr(error, "traceback_str"):
            return error
        error = cause if isinstance(cause, BaseException) else None
    return None


def _plain(value: Any) -> Any:
    """Paths and typed nouns as JSON has them."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):  # a numpy scalar
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON")


def _same(what: str) -> str:
    """What stays of a step's name while its figures change."""
    return re.sub(r"[\d.,]+", "#", what)


class _Redrawn:
    """A terminal: the current step is redrawn with its bar, finished ones stay above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Bar | None = None
        self.what, self.since = "", 0.0

    def update(self, what: str, done: int, total: int) -> None:
        if self.bar is None or _same(what) != _same(self.what):
            self.close()
            self.bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[so_far]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.bar.add_task(what, total=None, so_far="")
            self.bar.start()
            self.since = time.monotonic()
        self.what = what
        so_far = f"{done:,} of {total:,}" if total else f"{done:,}" if done else ""
        self.bar.update(self.bar.task_ids[0], description=what, completed=done, total=total or None, so_far=so_far)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
            self.console.print(f"  {self.what}  [dim]{time.monotonic() - self.since:.1f} s[/dim]")


class _Lines:
    """A log: a line for each new step, and now and then one that says how far it is."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.what, self.last, self.start = "", 0.0, time.monotonic()

    def update(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if _same(what) == _same(self.what) and now - self.last < PLAIN_SECONDS:
            return
        self.what, self.last = what, now
        so_far = f"  {done:,} of {total:,}" if total and done else f"  {done:,}" if done else ""
        self.console.print(f"{now - self.start:7.1f} s  {what}{so_far}", markup=False)

    def close(self) -> None:
        self.what = ""
