"""One run in two real processes: both stages, sampling and metrics, by each way of starting and sharing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_F1, TINY_GAN, TINY_LDM, TINY_VAE

pytestmark = pytest.mark.slow

TWO = ["trainer=ddp", "trainer.lightning.devices=2", "trainer.threads=null"]


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **more}


def ldmlab(folder, *arguments, start=("-m", "ldmlab"), **more):
    command = [sys.executable, *start, *arguments]
    return subprocess.run(command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=600)


def summary(folder, name):
    return json.loads((folder / "runs/s" / name / "summary.json").read_text())


def weights(folder, name):
    return load_file(folder / "runs/s" / name / "checkpoints/model.safetensors")


def largest_difference(left, right):
    assert left.keys() == right.keys()
    return max((left[key].double() - right[key].double()).abs().max().item() for key in left)


def test_both_stages_and_what_is_measured_of_them(tmp_path):
    ldm = [*TINY_LDM, "study=s", "logger=wandb", "logger.offline=true", "metrics.previews=1"]
    done = ldmlab(tmp_path, "train-ldm", *TWO, *ldm, "name=two")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("encoding 64 images ...") == 1  # one process speaks
    two = summary(tmp_path, "two")
    assert two["processes"] == 2
    assert two["cost"]["images"] == two["cost"]["steps"] * 8  # the batch is that of a step, whoever shares it
    (latents,) = (tmp_path / "runs/.cache/latents").glob("[!.]*")  # beside it lies its lock
    assert sorted(path.name for path in latents.iterdir()) == ["00000", "00001", "cost.json"]
    wandb = [path for path in (tmp_path / "runs/s/two/wandb").glob("*run-*") if not path.is_symlink()]
    assert len(wandb) == 1
    rows = [json.loads(line) for line in (tmp_path / "runs/s/two/metrics.jsonl").read_text().splitlines()]
    assert any(name.endswith("@preview") for row in rows for name in row)
    # measured again by one process, the images are the same
    again = ldmlab(tmp_path, "evaluate", "from=runs/s/two", "metrics.speed_repeats=0")
    assert again.returncode == 0, again.stderr
    distance = "val/kid_lite0_32@euler2"
    measured = summary(tmp_path, "two")["metrics"][distance]["value"]
    assert measured == pytest.approx(two["metrics"][distance]["value"], abs=1e-5)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ldmlab")


def as_by_srun(folder, *arguments):
    """Two processes with the environment that srun gives them; what they said, if one failed."""
    slurm = {
        "SLURM_JOB_ID": str(20000 + os.getpid() % 10000), "SLURM_JOB_NAME": "run", "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_TASKS_PER_NODE": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0",
    }  # fmt: skip
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "ldmlab", *arguments], cwd=folder, stderr=subprocess.PIPE, text=True,
            env=environment(**slurm, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in both]
    return "".join(said) if any(process.returncode for process in both) else ""


def test_two_processes_end_with_the_weights_of_one(tmp_path):
    vae = ["train-vae", *TINY_VAE, "study=s", "autoencoder=fsq", "seed=1"]  # nothing is drawn in training
    one = ldmlab(tmp_path, *vae, "name=one")
    assert one.returncode == 0, one.stderr
    assert as_by_srun(tmp_path, *vae, "trainer=ddp", "name=two") == ""
    assert summary(tmp_path, "two")["processes"] == 2
    assert largest_difference(weights(tmp_path, "one"), weights(tmp_path, "two")) < 1e-4


def test_sharded_weights_become_what_whole_ones_become(tmp_path):
    ldm = ["train-ldm", *TINY_LDM, "study=s", "optimizer=adamw"]
    whole = ldmlab(tmp_path, *ldm, "trainer=ddp", "name=whole", start=TORCHRUN)
    sharded = ldmlab(tmp_path, *ldm, *TWO, "trainer=fsdp", "name=sharded")
    assert (whole.returncode, sharded.returncode) == (0, 0), whole.stderr + sharded.stderr
    assert largest_difference(weights(tmp_path, "whole"), weights(tmp_path, "sharded")) < 1e-6


def test_a_discriminator_in_two_processes(tmp_path):
    done = ldmlab(tmp_path, "train-vae", *TINY_GAN, *TWO, "study=s", "name=two")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "runs/s/two/metrics.jsonl").read_text().splitlines()]
    assert any("train/adaptive_factor" in row for row in rows)


def stopped_after_a_checkpoint(folder, *arguments):
    """Starts a run, asks it to stop once it has saved, and returns how it ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ldmlab", *arguments], cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    )
    begun = folder / "runs/s/two/checkpoints/last.ckpt"
    until = time.monotonic() + 300
    while not begun.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


LONG = ["study=s", "budget.steps=60", "trainer.checkpoint_steps=5"]
STOPPED = {
    "ddp": ["train-vae", *TINY_VAE, *LONG, *TWO],
    "fsdp": ["train-ldm", *TINY_F1, *LONG, *TWO, "trainer=fsdp", "optimizer=adamw"],
}


@pytest.mark.parametrize("trainer", STOPPED)
def test_two_processes_that_were_stopped_go_on_as_if_they_had_not_been(tmp_path, trainer):
    command = STOPPED[trainer]
    folder = tmp_path / "first"
    folder.mkdir()
    whole = ldmlab(folder, *command, "name=whole")
    assert whole.returncode == 0, whole.stderr
    code, said = stopped_after_a_checkpoint(folder, *command, "name=two")
    assert code == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1].endswith("the same command goes on from there")
    steps = torch.load(folder / "runs/s/two/checkpoints/last.ckpt", weights_only=False)["global_step"]
    assert 0 < steps < 60
    if trainer == "ddp":
        shutil.copytree(folder, tmp_path / "second")

    resumed = ldmlab(folder, *command, "name=two")
    assert resumed.returncode == 0, resumed.stderr
    assert largest_difference(weights(folder, "whole"), weights(folder, "two")) == 0

    if trainer == "fsdp":
        return
    # one process goes on too, though not with the same random numbers
    alone = ldmlab(tmp_path / "second", *command, "name=two", "trainer.lightning.devices=1")
    assert alone.returncode == 0, alone.stderr
    found = summary(tmp_path / "second", "two")
    assert found["processes"] == 1
    assert found["cost"]["images"] == 60 * 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainer.lightning.devices=3"], "batch_size: 8 images cannot be shared evenly by 3 processes"),
        (["trainer.lightning.devices=0"], "trainer.lightning.devices: a number of devices"),
        (["trainer.lightning.num_nodes=2"], "trainer.lightning.num_nodes: 2 machines need"),
        (["trainer.lightning.strategy=zero"], "trainer.lightning.strategy: one of auto, ddp, fsdp"),
        (["trainer=fsdp", "trainer.lightning.devices=2"], "use optimizer=adamw"),
    ],
)
def test_what_cannot_be_shared_is_said_once(tmp_path, settings, message):
    done = ldmlab(tmp_path, "train-ldm", *TINY_LDM, "trainer=ddp", *settings)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("ldmlab: ")]
    assert len(said) == 1, done.stderr
    assert message in said[0]
    assert "Traceback" not in done.stderr
