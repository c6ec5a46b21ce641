"""What users get wrong ends in one line and exit code 2, before training starts, and damages nothing."""

import io
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import TINY_LDM, TINY_VAE

from ldmlab.modules.autoencoder import AutoencoderModule
from ldmlab.modules.latent_diffusion import LatentDiffusionModule


@pytest.fixture(autouse=True)
def _no_training(monkeypatch):
    for module in (AutoencoderModule, LatentDiffusionModule):
        monkeypatch.setattr(module, "training_step", lambda *_: pytest.fail("training started"))


def png(size=16):
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (200, 30, 30)).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(folder, images, **columns):
    folder.mkdir()
    rows = {"image": [{"bytes": image, "path": None} for image in images], **columns}
    pq.write_table(pa.table(rows), folder / "train.parquet")
    pq.write_table(pa.table(rows), folder / "test.parquet")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train-ldm", "downsampling=f3"], "downsampling=f3: there is no such option"),
        (["train-ldm", "batch_sise=3"], "unknown key 'batch_sise'; did you mean batch_size?"),
        (["train-ldm", "scheduler.predicton=v"], "did you mean scheduler.prediction?"),
        (["train-ldm", "scheduler.prediction=x0"], "scheduler.prediction: one of epsilon, sample, v, velocity"),
        (["train-ldm", "scheduler=linear", "scheduler.schedule.zero_terminal_snr=true"], "use v or velocity"),
        (["train-ldm", "scheduler.learned_variance=true"], "scheduler.learned_variance: the steps of a chain"),
        (["train-ldm", "scheduler=improved_ddpm", "scheduler/times=mode"], "trained at the steps of the chain"),
        (
            ["train-ldm", "scheduler=edm", "scheduler/times=discrete", "scheduler.times.steps=2000"],
            "scheduler.times: 2000 discrete times reach noise levels below the smallest of this path",
        ),
        (["train-ldm", "scheduler=linear", "scheduler.schedule.steps=0"], "scheduler.schedule.steps: a whole number"),
        (["train-ldm", "scheduler=linear", "scheduler.schedule.beta_end=1.5"], "scheduler.schedule: every beta must"),
        (["train-ldm", "scheduler=sigmoid", "scheduler.schedule.tau=0"], "scheduler.schedule: every beta must"),
        (["train-ldm", "scheduler=edm", "scheduler.schedule.rho=0"], "scheduler.schedule.rho: a finite number"),
        (["train-ldm", "scheduler=edm", "scheduler.schedule.sigma_min=99"], "scheduler.schedule.sigma_min: a number"),
        (["train-ldm", "scheduler.schedule=null"], "scheduler.schedule: a node with a _target_ is needed, not None"),
        (["train-ldm", "scheduler.schedule=linear"], "scheduler.schedule: a node with a _target_ is needed"),
        (["train-ldm", "scheduler.prediction=null"], "scheduler.prediction: a node with a _target_ is needed"),
        (["train-ldm", "scheduler.weighting=null"], "scheduler.weighting: a node with a _target_ is needed"),
        (["train-ldm", "scheduler.bound_weight=x"], "scheduler.bound_weight: a number is needed, not x"),
        (["train-ldm", "scheduler.learned_variance=no way"], "scheduler.learned_variance: true or false"),
        (["train-ldm", "scheduler.times.std=a"], "scheduler.times.std: a number is needed, not a"),
        (["train-ldm", "scheduler/times=importance", "scheduler.times.history=0"], "scheduler.times.history: a whole"),
        (["train-ldm", "sampler.grid=null"], "sampler.grid: auto, one of"),
        (["train-ldm", "sampler.grid={rho: 5}"], "or a grid of your own with a _target_ is needed"),
        (
            ["train-ldm", "sampler.grid={_target_: ldmlab.diffusion.grids.Karras, rho: 0}"],
            "sampler.grid.rho: a finite number above 0 is needed, not 0",
        ),
        (
            ["train-ldm", "sampler.grid={_target_: ldmlab.diffusion.grids.Leading, offset: 1}", "sampler.steps=1000"],
            "sampler.grid: Leading(offset=1) does not give 1001 falling times",
        ),
        (["train-ldm", "sampler.grid={_target_: ldmlab.diffusion.closed_form.Inside}"], "sampler.grid: Inside() ends"),
        (["train-ldm", "sampler._target_=ldmlab.diffusion.samplers.DDIMM"], "sampler: "),
        (["train-ldm", "sampler._target_=builtins.dict"], "sampler._target_: builtins.dict is no sampler"),
        (["train-ldm", "guidance=autoguidance", "guidance.guide=5"], "guidance.guide: no such run: 5"),
        (["train-ldm", "scheduler.schedule.shift=much"], "scheduler.schedule.shift: a positive number or auto"),
        (["train-ldm", "scheduler/weighting=min_snrr"], "scheduler/weighting=min_snrr: there is no such option"),
        (
            ["train-ldm", "scheduler/times=mode", "scheduler.times.scale=9"],
            "scheduler.times.scale: a number from -1",
        ),
        (["train-ldm", "sampler=ddpm", "sampler.variance=learned"], "has not learned its variance"),
        (["train-ldm", "sampler.grid=karas"], "sampler.grid: auto, one of uniform"),
        (["train-ldm", "sampler=unipc", "sampler.order=5"], "sampler.order: 1, 2 or 3"),
        (["train-ldm", "sampler=heun", "sampler.s_churn=-1"], "sampler.s_churn: a number of 0 or more"),
        (["train-ldm", "sampler=ddim", "sampler.grid=leading", "sampler.steps=1001"], "leading has no 1001 times"),
        (["train-ldm", "guidance=rescale", "guidance.rescale=3"], "guidance.rescale: a number from 0 to 1"),
        (["train-ldm", "guidance=autoguidance"], "guidance.guide is needed and not set"),
        (["train-ldm", "guidance=autoguidance", "guidance.guide=runs/none"], "guidance.guide: no such run"),
        (["train-ldm", "metrics=likelihood"], "metrics=likelihood is for the command evaluate"),
        (["evaluate", "from=x", "nfe=0"], "nfe: a whole number of 1 or more"),
        (["train-ldm", "experiment=demoo"], "did you mean demo?"),
        (["train-vae", "data.image_size=30"], "data.image_size: 30 is not divisible by the downsampling factor 4"),
        (["train-ldm", "data.image_size=20"], "levels cannot halve"),
        (["train-vae", "data=imagefolder", "data.path=nowhere"], "no such folder"),
        (["train-vae", "data=parquet"], "data.path is needed and not set"),
        (["train-vae", "downsampling=f1"], "f1 is the identity"),
        (["train-ldm", "budget.cpu_seconds=null"], "budget: no limit is set"),
        (["train-ldm", "budget.cpu_seconds=0"], "a positive number"),
        (["train-ldm", "autoencoder_share=1.5"], "autoencoder_share"),
        (["train-ldm", "budget=600"], "budget.cpu_seconds"),
        (["train-ldm", "trainer.num_workers=2"], "budget.seconds"),
        (["train-ldm", "name=../elsewhere"], "name: the name of a folder"),
        (["train-ldm", "study=/tmp/x"], "study: the name of a folder"),
        (["train-ldm", "batch_size=0"], "batch_size: a whole number of 1 or more"),
        (["train-ldm", "seed=abc"], "seed: a whole number"),
        (["train-ldm", "metrics.samples=3"], "metrics.samples: a whole number of 6 or more"),
        (["train-ldm", "metrics.reference_split=test"], "metrics.reference_split: train or val"),
        (["train-ldm", "metrics.features=inception"], "metrics/features=inception"),
        (["train-ldm", "autoencoder.network.regularizer.weight=big"], "autoencoder.network.regularizer.weight"),
        (["train-ldm", "drop_probability=2"], "drop_probability: a number from 0 to 1"),
        (["train-ldm", "downsampling=f1", "autoencoder.batch_sise=4"], "did you mean autoencoder.batch_size?"),
        (["train-ldm", "downsampling.factor=16"], "conf/downsampling/f16.yaml"),
        (["train-ldm", "downsampling=f4,f8"], "make a sweep, with -m"),
        (["train-ldm", "data=imagefolder", "data.path=my photos (1)"], "quote the value"),
        (["train-ldm", "--batch-size", "8"], "batch_size=..."),
        (["train-ldm", "trainer.lightning.devices=-3"], "a number of devices, or auto"),
        (["train-ldm", "trainer.lightning.precision=bf16-true"], "32-true or bf16-mixed"),
        (["train-ldm", "optimizer=adamw", "trainer.lightning.precision=bf16-mixed"], "optimizer.fused=false"),
        (["train-vae", "autoencoder/adversarial=patchgan", "trainer.lightning.precision=16-mixed"], "use bf16-mixed"),
        (
            [
                "train-vae",
                "autoencoder/adversarial=patchgan",
                "+trainer.lightning.gradient_clip_algorithm=value",
            ],
            "gradient_clip_algorithm: with autoencoder/adversarial only norm",
        ),
        (["train-vae", "autoencoder/perceptual=effnet_lite1", "autoencoder.perceptual.stages=9"], "perceptual.stages:"),
        (
            ["train-vae", "autoencoder/adversarial=patchgan", "autoencoder.adversarial.start=0.9"],
            "adversarial.heard_from",
        ),
        (
            [
                "train-vae",
                "autoencoder/adversarial=patchgan",
                "autoencoder.adversarial.discriminator.layers=4",
                "autoencoder/equivariance=eq_vae",
            ],
            "autoencoder: Calculated padded input size",
        ),
        (["train-vae", "autoencoder=vq", "autoencoder.codes=1"], "autoencoder.network.regularizer.codes: "),
        (["train-vae", "autoencoder=fsq", "autoencoder.network.latent_channels=3"], "regularizer.levels: 3 whole"),
        (["train-vae", "autoencoder.pixel_loss=l2"], "autoencoder.pixel_loss: one of l1, mse"),
        (["train-vae", "autoencoder=pretrained"], "autoencoder.path is needed and not set"),
        (["train-vae", "autoencoder=pretrained", "autoencoder.path=./none"], "autoencoder.path: no such folder"),
        (["train-vae", "autoencoder/size=paper", "autoencoder.network.channels=20"], "autoencoder.network.groups: "),
        (["train-vae", "autoencoder.optimizer=null"], "autoencoder.optimizer: null is for autoencoder=pretrained"),
        (["train-vae", "autoencoder/adversarial=patchgan", "trainer.lightning.precision=16"], "use bf16-mixed"),
        (["train-vae", "autoencoder.tile=7"], "autoencoder.tile: null or a multiple"),
        (["train-ldm", "trainer.lightning.precision=half"], "trainer.lightning: "),
        (["train-ldm", "+trainer.lightning.max_epochs=3"], "trainer.lightning.max_epochs: the lab sets this"),
        (["train-ldm", "conditioner=none", "guidance=cfg"], "use guidance=none"),
        (["train-ldm", "scheduler.prediction=epsilon"], "use v or velocity"),
        (["train-ldm", "sampler.steps=0"], "sampler.steps: a whole number of 1 or more"),
        (["train-ldm", "sampler=as_trained"], "sampler=as_trained is for"),
        (["train-ldm", "guidance.scale=abc"], "guidance.scale: a number"),
        (["train-ldm", "denoiser.head_channels=20"], "denoiser.head_channels: 20 does not divide"),
        (["train-ldm", "denoiser.heads=3"], "denoiser.heads: 3 does not divide"),
        (["train-ldm", "study=1"], "study: the name of a folder"),
        (["train-ldm", "denoiser.channels=wide"], "denoiser.channels: a whole number of 1 or more"),
        (["train-ldm", "denoiser.patch_size=0"], "denoiser.patch_size: a whole number of 1 or more"),
        (["train-ldm", "denoiser.channel_multipliers=2"], "denoiser.channel_multipliers: whole numbers are needed"),
        (["train-ldm", "metrics.features.input_size=0"], "metrics.features: "),
        (["train-ldm", "metrics.features.input_size=abc"], "metrics.features: "),
        (["train-ldm", "seed=-1"], "seed: a whole number from 0 to"),
        (["train-ldm", "optimizer.lr=fast"], "optimizer.lr: a number of 0 or more is needed, not fast"),
        (["train-vae", "autoencoder.optimizer.lr=-1"], "autoencoder.optimizer.lr: a number of 0 or more is needed"),
        (["train-vae", "runs_dir=/proc/nowhere"], "runs_dir: cannot write in"),
        (["sample", "from=x", "sampler.eta=0.5"], "+sampler.eta"),
        (["sample", "runs/x"], "settings are key=value"),
        (["train-ldm", "autoencoder_from=runs/none"], "autoencoder_from: no such run"),
        (["train-ldm", "sampler=ddpm", "sampler.variance=huge", "downsampling=f1"], "sampler.variance"),
        (["train-ldm", "denoiser.chanels=3"], "did you mean denoiser.channels?"),
        (["sample", "from=runs/none"], "from: no such run"),
        (["sample"], "from is needed and not set"),
        (["trian-ldm"], "did you mean train-ldm"),
        (["compare", "nowhere"], "nowhere"),
    ],
)
def test_one_line_names_the_mistake(ldmlab, arguments, said):
    assert said in ldmlab.error(*arguments)
    assert not (ldmlab.folder / "runs").exists() or not list((ldmlab.folder / "runs").glob("*/*/config.yaml"))


def test_an_empty_folder(ldmlab):
    (ldmlab.folder / "photos").mkdir()
    said = ldmlab.error("train-vae", "data=imagefolder", "data.path=photos", "data.image_size=16")
    assert "no images" in said


def test_a_corrupt_image_is_named(ldmlab):
    write_parquet(ldmlab.folder / "d", [png(), b"not an image", png()])
    said = ldmlab.error("train-vae", "data=parquet", "data.path=d", "data.image_size=16")
    assert "train.parquet row 1" in said
    assert "data.corrupt=skip" in said


def test_class_conditioning_on_data_without_labels(ldmlab):
    write_parquet(ldmlab.folder / "d", [png()] * 3)
    said = ldmlab.error("train-ldm", "data=parquet", "data.path=d", "data.image_size=16")
    assert "has no class labels" in said
    assert "conditioner=none" in said


@pytest.mark.slow
def test_an_autoencoder_for_another_factor(copy_of_trained, ldmlab):
    said = ldmlab.error("train-ldm", "autoencoder_from=runs/t/vae-f4", "downsampling=f8")
    assert "was trained for f4" in said


@pytest.mark.slow
def test_a_diffusion_run_is_no_autoencoder(copy_of_trained, ldmlab):
    assert "diffusion stage" in ldmlab.error("train-ldm", "autoencoder_from=runs/t/ldm-f4")


@pytest.mark.slow
def test_a_checkpoint_cut_in_half_is_named_and_kept(copy_of_trained, ldmlab):
    run = copy_of_trained / "vae-f4"
    (run / "summary.json").unlink()
    checkpoint = run / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    half = checkpoint.read_bytes()
    said = ldmlab.error("train-vae", "study=t", "name=vae-f4", *TINY_VAE)
    assert "last.ckpt is damaged or cut off" in said
    assert checkpoint.read_bytes() == half


@pytest.mark.slow
def test_an_autoencoder_whose_weights_are_cut_in_half(copy_of_trained, ldmlab):
    weights = copy_of_trained / "vae-f4" / "checkpoints" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    said = ldmlab.error("train-ldm", "study=u", "autoencoder_from=runs/t/vae-f4", *TINY_LDM)
    assert "cannot be read" in said
    assert not (ldmlab.folder / "runs" / "u" / "ldm-f4" / "summary.json").exists()


def seconds(*arguments):
    start = time.process_time(), time.perf_counter()
    result = subprocess.run([sys.executable, "-m", "ldmlab", *arguments], capture_output=True, text=True)
    return result, time.perf_counter() - start[1]


def test_help_and_config_errors_do_not_wait_for_torch():
    code = (
        "import sys; sys.argv = ['ldmlab', 'train-ldm', 'batch_sise=3']\n"
        "from ldmlab.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 2\n"
        "assert 'hydra' in sys.modules and 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    result, took = seconds("--help")
    assert result.returncode == 0
    assert "train-ldm" in result.stdout
    assert took < 1
    result, took = seconds("train-ldm", "budget.cpu_seconds=-1")
    assert result.returncode == 2
    assert took < 4
