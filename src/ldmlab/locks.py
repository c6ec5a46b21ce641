"""One program at a time, on one machine or on several that share a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ldmlab.errors import UserError


@contextmanager
def locked(path: Path, option: str, say_waiting: Callable[[], None]) -> Iterator[None]:
    """Holds what stands, or will stand, at `path` within the block; waits, and says so, while another program does.

    Raises:
        UserError: nothing can be written there; `option` is the setting that says where that is.
    """
    # whoever may write into the folder may take the lock
    lock = FileLock(path.parent / f".{path.name}.lock", mode=0o666)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say_waiting()
            lock.acquire()
    except OSError as error:
        raise UserError(f"{option}: cannot write in {path.parent} ({error.strerror}): choose another") from error
    try:
        yield
    finally:
        lock.release()
