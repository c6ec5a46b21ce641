"""What became of the jobs of a sweep, some of which may have run in other processes or on other machines."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmlab.errors import Interrupted, UserError

FOLDER = ".failures"

SWEEPS: list[Path] = []
"""Folders of sweeps that have ended in this process: tasks/sweep.py notes them, hydra_app.py reads what is there."""


class Elsewhere(Exception):
    """A failure of a job in another process, with its exit code there."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Failures:
    """The jobs that failed. Copies that a launcher sends to other processes leave a file for the first one to find."""

    process: tuple[str, int] = field(default_factory=lambda: this_process())
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    found: list[tuple[str, Exception]] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        """Whether the last job that failed was stopped by whoever started it."""
        return bool(self.found) and isinstance(self.found[-1][1], Interrupted)

    @property
    def first_process(self) -> bool:
        """Whether this is where the command was given."""
        return this_process() == self.process

    def add(self, job: str, failure: Exception, folder: Path) -> None:
        """Notes the failure of a job; `folder` is one that all processes of the sweep see."""
        self.found.append((job, failure))
        if self.first_process:
            return
        place = folder / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        content = {"job": job, "message": str(failure), "exit_code": exit_code(failure)}
        (place / f"{self.name}-{secrets.token_hex(4)}.json").write_text(json.dumps(content))

    def gather(self, folder: Path) -> None:
        """Takes over what copies left in the folder."""
        for file in sorted((folder / FOLDER).glob(f"{self.name}-*.json")):
            content: dict[str, Any] = json.loads(file.read_text())
            self.found.append((content["job"], Elsewhere(content["message"], content["exit_code"])))
            file.unlink()
        with contextlib.suppress(OSError):
            (folder / FOLDER).rmdir()

    @property
    def exit_code(self) -> int:
        """0 if no job failed, that of the signal if one was interrupted, or the least."""
        codes = [exit_code(failure) for _, failure in self.found]
        stopped = [exit_code(failure) for _, failure in self.found if isinstance(failure, Interrupted)]
        return (stopped or [min(codes)])[0] if codes else 0


def exit_code(failure: Exception) -> int:
    """2 for what the user can put right, that of the signal for an interrupted run, 1 for our own mistake."""
    return getattr(failure, "exit_code", 2 if isinstance(failure, UserError) else 1)


def this_process() -> tuple[str, int]:
    """Machine and process."""
    return socket.gethostname(), os.getpid()
