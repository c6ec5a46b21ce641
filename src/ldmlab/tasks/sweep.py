"""What happens after a sweep: failures are gathered, and its runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ldmlab.errors import UserError
from ldmlab.failures import SWEEPS


class GatherFailures(Callback):
    """Notes where jobs in other processes say of what they failed, whichever launcher ran them."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hands the folder on."""
        SWEEPS.append(Path(config.hydra.sweep.dir))


class CompareAfterSweep(Callback):
    """Compares the study's runs when the last job of a multirun has ended, whichever launcher ran the jobs."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the table and writes the page."""
        from ldmlab.tasks.compare import compare

        study = Path(config.runs_dir) / config.study
        try:
            compare([study])
        except UserError as error:
            # no run was completed: the failures themselves are reported by the command
            print(error)
