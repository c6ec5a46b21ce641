"""The one console that tasks print to, and progress of what is not training."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import track as rich_track

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """A line, not broken at the width of a terminal that may not be there."""
    console.print(message, soft_wrap=True)


def track(iterable: Iterable[Any], length: int, title: str) -> Iterable[Any]:
    """The iterable with a progress bar on a terminal; in a log file, its title and how long it took."""
    if console.is_terminal:
        yield from rich_track(iterable, description=title, total=length, console=console, transient=True)
        return
    say(f"{title} ...")
    start = time.monotonic()
    yield from iterable
    say(f"{title}: {time.monotonic() - start:.0f} s")
