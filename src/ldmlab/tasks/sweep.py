"""What Hydra tells of a sweep: where its folder is, before the first job is sent anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ldmlab import jobs


class NoteFolder(Callback):
    """Gives the sweep's jobs a folder that all of them see, whichever study each belongs to."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Notes it."""
        jobs.THESE.folder = Path(config.hydra.sweep.dir).resolve()
