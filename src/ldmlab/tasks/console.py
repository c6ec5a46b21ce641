"""The one console that tasks print to, and progress of what is not training."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import track as rich_track

SAID_EVERY = 20.0  # seconds between two lines of progress in a log file

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """A line, not broken at the width of a terminal that may not be there."""
    console.print(message, soft_wrap=True)


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
