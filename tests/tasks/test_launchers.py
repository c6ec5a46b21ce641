"""Sweeps by other launchers than Hydra's own, and by a sweeper that searches, with real processes."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from tiny import TINY_F1, TINY_LDM

pytestmark = pytest.mark.slow


def ldmlab(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    command = [sys.executable, "-m", "ldmlab", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_four_jobs_share_an_autoencoder(tmp_path, launcher):
    several = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    done = ldmlab(
        tmp_path, "train-ldm", "-m", f"hydra/launcher={launcher}", *several, *TINY_LDM,
        "study=s", "seed=0,1", "sampler.steps=2,3", "budget.steps=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = {path.parent.name for path in tmp_path.glob("runs/s/*/summary.json")}
    assert len(runs) == 5
    autoencoders = [name for name in runs if name.startswith("vae")]
    assert len(autoencoders) == 1  # trained once, by whichever job came first
    assert (tmp_path / "runs/s/comparison.html").exists()
    for name in runs:
        assert json.loads((tmp_path / "runs/s" / name / "summary.json").read_text())["status"] == "complete"


def test_jobs_that_fail_in_other_processes_stop_no_other_and_are_named_at_the_end(tmp_path):
    """Whichever study they belong to; and each study is compared."""
    done = ldmlab(
        tmp_path, "train-ldm", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *TINY_F1,
        "study=a,b", "sampler.steps=0,2", "budget.steps=2",
    )  # fmt: skip
    assert done.returncode == 2
    failed = sorted(line for line in done.stderr.splitlines() if line.startswith("failed: "))
    assert [line[:20] for line in failed] == ["failed: job 1 of 4 (", "failed: job 2 of 4 ("]
    assert all("sampler.steps" in line.partition("): ")[2] for line in failed)
    for study in ("a", "b"):
        assert len(list(tmp_path.glob(f"runs/{study}/*/summary.json"))) == 1
        assert (tmp_path / f"runs/{study}/comparison.html").exists()
    assert not list(tmp_path.rglob(".jobs"))


def test_a_search_minimises_what_a_run_returns(tmp_path):
    done = ldmlab(
        tmp_path, "train-ldm", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.sampler.seed=0", *TINY_F1, "study=s", "budget.steps=2",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))", "guidance.scale=interval(1,4)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = list(tmp_path.glob("runs/s/*/summary.json"))
    assert len(runs) == 3
    found = [json.loads(run.read_text())["metrics"] for run in runs]
    best = min(
        metric["value"]
        for metrics in found
        for name, metric in metrics.items()
        if name.endswith("@euler2") and "/kid" in name
    )
    result = yaml.safe_load((tmp_path / "runs/s/optimization_results.yaml").read_text())
    assert result["best_value"] == pytest.approx(best)
    assert set(result["best_params"]) == {"optimizer.lr", "guidance.scale"}


def values(folder):
    """All measured values of a study's runs, but how long things took."""
    summaries = {
        path.parent.name: json.loads(path.read_text())["metrics"] for path in folder.glob("runs/s/*/summary.json")
    }
    return {
        name: {key: metric["value"] for key, metric in metrics.items() if not key.startswith("speed/")}
        for name, metrics in summaries.items()
    }


def test_a_sweep_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sweep = ["train-ldm", "-m", *TINY_LDM, "study=s", "seed=0,1", "budget.steps=60", "trainer.checkpoint_steps=5"]
    for folder in (whole, cut):
        folder.mkdir()
    assert ldmlab(whole, *sweep).returncode == 0

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    process = subprocess.Popen([sys.executable, "-m", "ldmlab", *sweep], cwd=cut, env=environment)
    while not (begun := list(cut.glob("runs/s/ldm-*seed-1*/checkpoints/last.ckpt"))):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (begun[0].parents[1] / "summary.json").exists()
    again = ldmlab(cut, *sweep)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("done already") == 2  # the first job, and the autoencoder of both
    assert values(cut) == values(whole)
