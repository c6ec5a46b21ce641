"""Work on the rows of a split in threads, with a progress bar where it takes long."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import track

ROWS_PER_TASK = 64
PROGRESS_BAR_FROM = 5_000


def for_all_rows(work: Callable[[range], None], count: int, description: str) -> None:
    """Call `work` with ranges of rows that cover 0, ..., `count` - 1; the first error ends it all."""

    def work_from(start: int) -> None:
        work(range(start, min(start + ROWS_PER_TASK, count)))

    starts = range(0, count, ROWS_PER_TASK)
    # threads, not processes: Pillow releases the interpreter while it decodes and resizes
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        for _ in track(
            pool.map(work_from, starts),
            description=description,
            total=len(starts),
            console=Console(stderr=True),
            disable=count < PROGRESS_BAR_FROM,
        ):
            pass
    finally:
        # an error or Ctrl-C must not wait for the thousands of tasks that nobody needs any more
        pool.shutdown(cancel_futures=True)
