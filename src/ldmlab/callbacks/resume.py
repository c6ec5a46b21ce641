"""What a run needs to stop at any moment and to end, once resumed, with the very same weights."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ldmlab import processes


class RandomState(L.Callback):
    """Saves the state of every random number generator in a checkpoint, and restores it before the next batch.

    Lightning saves none. Restored as late as the first batch, because setting up a resumed run draws numbers. A run
    that goes on in another number of processes draws new ones.
    """

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The state of all generators of all processes."""
        return {"processes": processes.gather_objects(self._own_state())}

    @staticmethod
    def _own_state() -> dict[str, Any]:
        name, keys, *rest = np.random.get_state(legacy=True)
        state = {
            "torch": torch.get_rng_state(),
            "numpy": [name, np.asarray(keys).tolist(), *rest],
            "python": random.getstate(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps a saved state for the first batch."""
        self._pending = state["processes"]

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Restores the saved state, once."""
        if self._pending is None:
            return
        states, self._pending = self._pending, None
        if len(states) != processes.world_size():
            L.seed_everything((torch.initial_seed() + trainer.global_step) % 2**32, verbose=False)
            return
        state = states[processes.rank()]
        torch.set_rng_state(state["torch"].cpu())
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class StraightToDisk(TorchCheckpointIO):
    """Writes a checkpoint where it is to be: Lightning by itself goes through memory and /tmp, which may be small."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes it.

        Raises:
            OSError: there is no room.
        """
        try:
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch ends its archive whatever happened, and complains of that
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


class Checkpoints(L.Callback):
    """Keeps the newest checkpoint: every `every_seconds`, every `every_steps` if given, and when asked to stop.

    SIGINT and SIGTERM end training after the optimiser step under way, so that the checkpoint is that of a whole step;
    `interrupted_by` then holds the signal. A second SIGINT ends the process at once.
    """

    def __init__(self, path: Path, every_seconds: float, every_steps: int | None = None):
        self.path, self.every_seconds, self.every_steps = path, every_seconds, every_steps
        self.interrupted_by: signal.Signals | None = None
        self._asked = 0  # the signal that this process was sent
        self._handlers: dict[signal.Signals, Any] = {}
        self._saved_at = 0.0
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Listens for signals, in place of Lightning, whose handler waits for other processes; starts the clock."""
        self._saved_at = time.monotonic()
        self._step = trainer.global_step
        for name in (signal.SIGINT, signal.SIGTERM):
            self._handlers[name] = signal.signal(name, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Saves where it is time to."""
        step = trainer.global_step
        if step == self._step:
            return  # within an accumulation of gradients, which a checkpoint does not hold
        self._step = step
        due = time.monotonic() - self._saved_at > self.every_seconds
        due = due or bool(self.every_steps and step % self.every_steps == 0)
        # whichever process is asked to stop, and whosever clock says so
        due, asked = processes.gather_numbers([due, self._asked]).amax(0).tolist()
        self.interrupted_by = signal.Signals(int(asked)) if asked else None
        if due or self.interrupted_by is not None or trainer.should_stop:
            # in one move, so that there is a whole checkpoint at every moment
            building = self.path.with_name(f".{self.path.name}")
            try:
                trainer.save_checkpoint(building)
            except BaseException:
                building.unlink(missing_ok=True)  # what there is of it takes the space that there is
                raise
            if processes.rank() == 0:
                building.replace(self.path)
            self._saved_at = time.monotonic()
        if self.interrupted_by is not None:
            trainer.should_stop = True

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self._give_back()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """The same where training failed, for the jobs that follow in this process."""
        self._give_back()

    def _give_back(self) -> None:
        for name, handler in self._handlers.items():
            signal.signal(name, handler)
        self._handlers = {}
