"""Checkpoints of whole steps, and signals that are given back."""

import resource
import signal
import tempfile
from types import SimpleNamespace

import pytest
import torch

from ldmlab.callbacks.resume import Checkpoints, StraightToDisk


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


def test_a_checkpoint_that_finds_no_room_leaves_nothing_and_keeps_the_last(tmp_path):
    class Full(Trainer):
        def save_checkpoint(self, path):
            StraightToDisk().save_checkpoint({name: torch.rand(40_000) for name in "ab"}, path)

    (tmp_path / "last.ckpt").write_text("whole")
    callback = Checkpoints(tmp_path / "last.ckpt", every_seconds=1e9, every_steps=1)
    trainer = Full(global_step=0, saved=[])
    callback.on_train_start(trainer, None)
    trainer.global_step = 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # the second tensor finds no room
    try:
        with pytest.raises(OSError, match="File too large"):
            callback.on_train_batch_end(trainer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    callback.teardown(trainer, None, "fit")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"last.ckpt": "whole"}


def test_a_checkpoint_goes_nowhere_but_where_it_is_to_be(tmp_path, monkeypatch):
    """Of a cluster's nodes /tmp is often small, and in memory."""

    def elsewhere(*_, **__):
        raise AssertionError

    monkeypatch.setattr(tempfile, "mkstemp", elsewhere)
    monkeypatch.setattr("lightning.fabric.utilities.cloud_io._atomic_save", elsewhere)
    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", elsewhere)
    StraightToDisk().save_checkpoint({"weights": torch.ones(3)}, tmp_path / "last.ckpt")
    assert torch.equal(StraightToDisk().load_checkpoint(tmp_path / "last.ckpt")["weights"], torch.ones(3))


def test_signals_are_given_back_when_training_fails(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    callback = Checkpoints(tmp_path / "last.ckpt", every_seconds=1e9)
    callback.on_train_start(Trainer(global_step=0, saved=[]), None)
    assert signal.getsignal(signal.SIGTERM) != before
    callback.on_exception(None, None, RuntimeError("out of memory"))
    assert signal.getsignal(signal.SIGTERM) == before
