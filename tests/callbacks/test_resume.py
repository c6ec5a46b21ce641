"""Checkpoints of whole steps, and signals that are given back."""

import signal
from types import SimpleNamespace

from ldmlab.callbacks.resume import Checkpoints


class Trainer(SimpleNamespace):
    """What the callback asks of Lightning's."""

    should_stop = False

    def save_checkpoint(self, path):
        self.saved.append(self.global_step)
        path.write_text("")


def test_a_micro_batch_after_a_resume_is_no_whole_step(tmp_path):
    callback = Checkpoints(tmp_path / "last.ckpt", every_seconds=1e9, every_steps=2)
    trainer = Trainer(global_step=2, saved=[])
    callback.on_train_start(trainer, None)
    callback.on_train_batch_end(trainer)  # gradients are accumulated, no step is taken
    assert trainer.saved == []
    trainer.global_step = 4
    callback.on_train_batch_end(trainer)
    assert trainer.saved == [4]
    callback.teardown(trainer, None, "fit")


def test_signals_are_given_back_when_training_fails(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    callback = Checkpoints(tmp_path / "last.ckpt", every_seconds=1e9)
    callback.on_train_start(Trainer(global_step=0, saved=[]), None)
    assert signal.getsignal(signal.SIGTERM) != before
    callback.on_exception(None, None, RuntimeError("out of memory"))
    assert signal.getsignal(signal.SIGTERM) == before
