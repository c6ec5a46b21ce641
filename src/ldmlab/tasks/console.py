"""The one console that tasks print to, and progress of what is not training."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track as rich_track

SAID_EVERY = 20.0  # seconds between two lines of progress in a log file

# of the processes that torchrun starts, one speaks
console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")


def say(message: str) -> None:
    """A line, not broken at the width of a terminal that may not be there."""
    console.print(message, soft_wrap=True)


def say_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns, the first to the left and numbers to the right, whole whatever the terminal's width."""
    lines = [list(headings), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for first, *others in lines:
        numbers = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        console.print("  ".join([first.ljust(widths[0]), *numbers]), soft_wrap=True, markup=False)


def track(iterable: Iterable[Any], length: int, title: str) -> Iterable[Any]:
    """The iterable with a progress bar on a terminal; in a log file, its title, how far it is, and how long it took."""
    if console.is_terminal:
        yield from rich_track(iterable, description=title, total=length, console=console, transient=True)
        return
    say(f"{title} ...")
    start = said = time.monotonic()
    for done, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - said > SAID_EVERY and done < length:
            left = (now - start) / done * (length - done)
            say(f"{title}: {100 * done / length:.0f} %, {left:.0f} s left")
            said = now
    say(f"{title}: {time.monotonic() - start:.0f} s")
