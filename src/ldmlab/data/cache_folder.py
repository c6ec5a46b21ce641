"""Folders of a cache: whole or not there at all, whatever interrupts their making."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ldmlab import processes
from ldmlab.errors import DISK_FULL, UserError
from ldmlab.locks import locked

log = logging.getLogger(__name__)


def disk_full_error(folder: Path, nbytes: int | None = None, advice: str = "") -> UserError:
    """The message for a disk without room for `nbytes`, None if unknown; `advice` says what else helps."""
    need = "space" if nbytes is None else f"{nbytes / 1e9:.3g} GB"
    free = shutil.disk_usage(folder).free if folder.exists() else 0
    return UserError(
        f"cache_dir: {need} needed in {folder}, where {free / 1e9:.3g} GB are free; free some, or set another cache_dir"
        + (f", {advice}" if advice else "")
    )


def make_once(folder: Path, make: Callable[[], None], together: bool = False) -> None:
    """Has `make` make a folder of a cache where there is none: one program does, the others wait and find it.

    `together`: all processes of a run call this, and make the folder together.
    """
    decide: Callable[[Callable[[], Any]], Any] = processes.from_first if together else lambda call: call()
    if decide(folder.exists):
        return
    with ExitStack() as held:

        def lock() -> None:
            waiting = "%s: another program is making it; waiting"
            held.enter_context(locked(folder, "cache_dir", lambda: log.warning(waiting, folder)))

        decide(lock)
        if not decide(folder.exists):
            make()


def _make_parent(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache_dir: cannot make {folder.parent} ({error.strerror}); set another") from error


@contextmanager
def new_folder(folder: Path, nbytes: int, advice: str = "") -> Iterator[Path]:
    """A temporary folder that becomes `folder` if the body succeeds, and is removed if it does not.

    `nbytes` is the space that will be needed, checked before anything is written.

    Raises:
        UserError: the disk has no room; the folder cannot be made. `advice` is part of the message.
    """
    _make_parent(folder)
    host = socket.gethostname()
    _remove_abandoned(folder, host)
    if nbytes > shutil.disk_usage(folder.parent).free:
        raise disk_full_error(folder.parent, nbytes, advice)
    # not tempfile.mkdtemp, whose folders nobody else of a group may read
    building = folder.parent / f".building-{folder.name}-{host}-{os.getpid()}-{uuid.uuid4().hex}"
    building.mkdir()
    try:
        yield building
        try:
            os.rename(building, folder)
        except OSError as error:
            # another process was faster: its folder has the same content
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    except OSError as error:
        if error.errno in DISK_FULL:
            raise disk_full_error(folder.parent, nbytes, advice) from error
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _remove_abandoned(folder: Path, host: str) -> None:
    """Remove what killed processes of this machine left of earlier attempts."""
    start = f".building-{folder.name}-{host}-"
    for path in folder.parent.glob(f"{start}*"):
        process = int(path.name.removeprefix(start).split("-")[0])
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass  # alive, and somebody else's


def create_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """A new .npy file of this shape, mapped for writing, its space reserved on the disk."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # without this a full disk kills the process with SIGBUS in the middle of a write to the mapped file
        with open(path, "r+b") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot reserve
                    raise
    return np.asarray(array)
