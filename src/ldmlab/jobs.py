"""What became of the jobs of a sweep, some of which may have run in other processes or on other machines."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmlab.errors import Interrupted, UserError, as_it_was

FOLDER = ".jobs"


@dataclass
class Jobs:
    """Those that failed, and the studies of all. Copies that a launcher sends elsewhere leave files for the first one.

    Attributes:
        folder: one that all processes of a sweep see; None where no sweep has begun.
        studies: folders of the runs that jobs were to make.
    """

    process: tuple[str, int] = field(default_factory=lambda: this_process())
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    folder: Path | None = None
    failed: list[tuple[str, Exception]] = field(default_factory=list)
    studies: dict[Path, None] = field(default_factory=dict)  # in their order

    @property
    def interrupted(self) -> bool:
        """Whether a job was stopped by whoever started the sweep."""
        return any(isinstance(failure, Interrupted) for _, failure in self.failed)

    @property
    def first_process(self) -> bool:
        """Whether this is where the command was given."""
        return this_process() == self.process

    def begin(self, study: Path) -> None:
        """Notes that a job has begun."""
        self.studies[study] = None
        self._leave({"study": str(study)})

    def fail(self, job: str, failure: Exception) -> None:
        """Notes that a job has failed."""
        self.failed.append((job, failure))
        self._leave({"job": job, "message": str(failure), "exit_code": exit_code(failure)})

    def _leave(self, note: dict[str, Any]) -> None:
        if self.first_process or self.folder is None:
            return
        place = self.folder / FOLDER
        name = f"{self.name}-{time.time_ns()}-{secrets.token_hex(4)}.json"
        with contextlib.suppress(OSError):  # the job's own failure is worth more than that of noting it
            place.mkdir(parents=True, exist_ok=True)
            (place / f".{name}").write_text(json.dumps(note))
            (place / f".{name}").rename(place / name)

    def gather(self) -> None:
        """Takes over what copies left."""
        if self.folder is None:
            return
        for file in sorted((self.folder / FOLDER).glob(f"{self.name}-*.json")):
            note: dict[str, Any] = json.loads(file.read_text())
            if "study" in note:
                self.studies[Path(note["study"])] = None
            else:
                self.failed.append((note["job"], as_it_was(note["message"], note["exit_code"])))
            file.unlink()
        with contextlib.suppress(OSError):
            (self.folder / FOLDER).rmdir()

    @property
    def exit_code(self) -> int:
        """0 if no job failed, that of the signal if one was interrupted, or the least."""
        codes = [exit_code(failure) for _, failure in self.failed]
        stopped = [exit_code(failure) for _, failure in self.failed if isinstance(failure, Interrupted)]
        return (stopped or [min(codes)])[0] if codes else 0


def exit_code(failure: Exception) -> int:
    """2 for what the user can put right, that of the signal for an interrupted run, 1 for our own mistake."""
    return getattr(failure, "exit_code", 2 if isinstance(failure, UserError) else 1)


def this_process() -> tuple[str, int]:
    """Machine and process."""
    return socket.gethostname(), os.getpid()


THESE = Jobs()
"""The jobs of this process's command. Hydra makes the callback by itself that says where a sweep has its folder."""
