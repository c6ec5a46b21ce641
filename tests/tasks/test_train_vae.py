"""Stage one from the command line: every regularizer, losses, pretrained ones, and diffusion on top of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_GAN, TINY_LDM, TINY_VAE

from ldmlab.autoencoders.perceptual import EffNetLite1
from ldmlab.pretrained.efficientnet_lite import VARIANTS
from ldmlab.tasks import build

CODES = ["autoencoder=vq", "autoencoder.codes=16"]


class PleasesTheJudge(EffNetLite1):
    """A perceptual loss on the very network that measures."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.trained_against = (VARIANTS["lite0"][2],)


def summary(folder, run):
    return json.loads((folder / "runs" / run / "summary.json").read_text())


@pytest.mark.parametrize("kind", ["kl", "vq", "fsq"])
@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_every_factor_and_regularizer_trains_and_normalises_its_latents(kind, factor, ldmlab):
    options = [f"autoencoder={kind}", f"downsampling=f{factor}", "study=t", "name=v", "data.image_size=32"]
    assert ldmlab("train-vae", *TINY_VAE, *options) == 0
    told = summary(ldmlab.folder, "t/v")
    metrics = told["metrics"]
    assert metrics["val/recon_fd_lite0_32"]["value"] > 0
    assert metrics["val/recon_psnr"]["manifest"]["samples"] == 12
    assert ("val/codebook_usage" in metrics) is (kind != "kl")
    assert ("kl_per_channel" in told["latents"]) is (kind == "kl")
    autoencoder, _ = build.load_autoencoder(ldmlab.folder / "runs/t/v")
    assert autoencoder.downsampling_factor == factor


def test_f32_takes_larger_images(ldmlab):
    assert ldmlab("train-vae", *TINY_VAE, "downsampling=f32", "study=t", "name=v", "data.image_size=64") == 0
    assert build.load_autoencoder(ldmlab.folder / "runs/t/v")[0].latent_channels == 32


def test_the_paper_s_size_trains(ldmlab):
    options = ["autoencoder/size=paper", "autoencoder.network.channels=32", "study=t", "name=v"]
    small = [option for option in TINY_VAE if not option.startswith("autoencoder.network.channels")]
    assert ldmlab("train-vae", *small, *options, "autoencoder=vq", "autoencoder.codes=16", "budget.steps=2") == 0
    assert build.load_autoencoder(ldmlab.folder / "runs/t/v")[0].latent_channels == 3


def test_all_losses_at_once_are_logged_and_the_discriminator_stays_out_of_the_model(ldmlab):
    assert ldmlab("train-vae", *TINY_GAN, "study=t", "name=v", "trainer.lightning.log_every_n_steps=1") == 0
    run = ldmlab.folder / "runs/t/v"
    logged = set().union(*(json.loads(line).keys() for line in (run / "metrics.jsonl").read_text().splitlines()))
    assert {"train/perceptual_lite1", "train/logits_real", "train/adaptive_factor"} <= logged
    assert not any("discriminator" in name for name in load_file(run / "checkpoints/model.safetensors"))
    autoencoder, _ = build.load_autoencoder(run)
    assert autoencoder.trained_against == (VARIANTS["lite1"][2],)
    # a step against the discriminator costs more than one that only trains it
    flops = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["Budget"]["flops_per_step"]
    assert flops["adversarial"] > flops["discriminator"] > 0


def test_with_a_discriminator_too_it_is_optimiser_steps_that_are_logged(ldmlab):
    often = ["trainer.lightning.accumulate_grad_batches=2", "trainer.lightning.log_every_n_steps=3"]
    assert ldmlab("train-vae", *TINY_GAN, "study=t", "name=v", *often) == 0
    lines = map(json.loads, (ldmlab.folder / "runs/t/v/metrics.jsonl").read_text().splitlines())
    logged = [line for line in lines if "train/loss" in line]
    assert len(logged) == 2  # of six steps
    assert all("train/gradient_norm_autoencoder" in line for line in logged)


def test_a_network_that_was_trained_against_cannot_judge(ldmlab, monkeypatch):
    monkeypatch.setattr("ldmlab.autoencoders.perceptual.EffNetLite1", PleasesTheJudge)
    options = ["autoencoder/perceptual=effnet_lite1", "study=t", "name=v"]
    assert "metrics.features: the autoencoder was trained to please" in ldmlab.error("train-vae", *TINY_VAE, *options)
    assert not (ldmlab.folder / "runs/t/v").exists()


def test_previews_measure_reconstructions_on_the_way(ldmlab):
    options = ["study=t", "name=v", "metrics.previews=2", "metrics.preview_samples=6"]
    assert ldmlab("train-vae", *TINY_VAE, *options) == 0
    lines = (ldmlab.folder / "runs/t/v/metrics.jsonl").read_text().splitlines()
    previews = [json.loads(line) for line in lines if "val/kid_lite0_32@reconstruction-preview" in line]
    assert len(previews) == 2
    assert all("val/recon_psnr@preview" in row for row in previews)
    assert "curve" not in ldmlab.said.err
    assert ldmlab("compare", "runs/t") == 0
    assert "Quality against training cost" in (ldmlab.folder / "runs/t/comparison.html").read_text()


def test_the_page_marks_where_the_discriminator_starts(ldmlab):
    options = ["study=t", "trainer.lightning.log_every_n_steps=1", "metrics.previews=1", "metrics.preview_samples=6"]
    assert ldmlab("train-vae", *TINY_GAN, *options, "name=gan") == 0
    assert ldmlab("train-vae", *TINY_VAE, *CODES, *options, "name=plain") == 0
    assert ldmlab("compare", "runs/t") == 0
    page = (ldmlab.folder / "runs/t/comparison.html").read_text()
    assert "from here the discriminator is trained" in page
    assert "perplexity" in page
    record = json.loads((ldmlab.folder / "runs/t/comparison.json").read_text())["autoencoders"]
    assert all(0 < row["codebook_usage"] <= 1 and row["recon_fd"] > 0 for row in record)


def test_diffusion_sees_latents_before_they_are_rounded(ldmlab):
    assert ldmlab("train-ldm", *TINY_LDM, *CODES, "study=t", "name=ldm") == 0
    told = summary(ldmlab.folder, "t/ldm")
    model, _ = build.load_diffusion(ldmlab.folder / "runs/t/ldm")
    latents = model.autoencoder.encode(torch.rand(2, 3, 16, 16)).mean
    codes = model.autoencoder.regularizer.codebook
    assert torch.cdist(latents.movedim(1, -1).reshape(-1, 4), codes).amin() > 0
    assert "autoencoder-vq" in told["autoencoder_from"]
    assert ldmlab("sample", "from=runs/t/ldm", "n=2") == 0


def test_a_sweep_of_diffusion_over_an_autoencoder_s_group_trains_one_autoencoder_each(ldmlab):
    swept = "autoencoder/equivariance=none,eq_vae"
    assert ldmlab("train-ldm", *TINY_LDM, "study=t", swept, "-m") == 0
    autoencoders = {path.name for path in (ldmlab.folder / "runs/t").glob("vae-*")}
    assert len(autoencoders) == 2
    for told in map(json.loads, map(Path.read_text, (ldmlab.folder / "runs/t").glob("ldm-*/summary.json"))):
        assert told["choices"]["autoencoder/equivariance"] in told["autoencoder_from"]
    assert {"equivariance-none" in name for name in autoencoders} == {True, False}


@pytest.fixture
def folder_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    model = diffusers.AutoencoderKL(
        block_out_channels=[8, 8, 8], latent_channels=4, norm_num_groups=4, layers_per_block=1, **blocks
    )
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_a_pretrained_autoencoder_is_measured_and_diffused_without_training(folder_of_diffusers, ldmlab):
    pretrained = ["autoencoder=pretrained", f"autoencoder.path={folder_of_diffusers}"]
    common = [option for option in TINY_VAE if not option.startswith("autoencoder.")]
    assert ldmlab("train-vae", *pretrained, *common, "study=t", "name=v") == 0
    told = summary(ldmlab.folder, "t/v")
    assert told["cost"]["steps"] == 0
    assert told["metrics"]["val/recon_psnr"]["value"] > 0

    ldm = [option for option in TINY_LDM if not option.startswith("autoencoder.")]
    assert ldmlab("train-ldm", *pretrained, *ldm, "study=t", "name=ldm") == 0
    folder_of_diffusers.rename(folder_of_diffusers.with_name("gone"))
    assert ldmlab("sample", "from=runs/t/ldm", "n=2", "tile=16") == 0
    model, _ = build.load_diffusion(ldmlab.folder / "runs/t/ldm")
    torch.testing.assert_close(model.autoencoder.latent_std, torch.full((4,), 1 / 0.18215))
    assert "downsamples by 4, not by 8" in ldmlab.error(
        "train-vae", "autoencoder=pretrained", f"autoencoder.path={folder_of_diffusers.with_name('gone')}",
        *common, "downsampling=f8", "study=t", "name=w",
    )  # fmt: skip


def test_a_run_of_the_whole_split_is_measured_again_on_other_images(ldmlab):
    whole = [option for option in TINY_VAE if not option.startswith("metrics.samples")]
    assert ldmlab("train-vae", *whole, "study=t", "name=v") == 0
    assert summary(ldmlab.folder, "t/v")["metrics"]["val/recon_psnr"]["manifest"]["samples"] == 32
    assert ldmlab("evaluate", "from=runs/t/v", "metrics.seed=3") == 0
    assert ldmlab("evaluate", "from=runs/t/v", "metrics.samples=10") == 0
    found = summary(ldmlab.folder, "t/v")["metrics"]
    assert found["val/recon_psnr@n32-seed3"]["value"] == pytest.approx(found["val/recon_psnr"]["value"])
    assert found["val/recon_psnr@n10-seed0"]["manifest"]["samples"] == 10
    assert ldmlab("evaluate", "--reproduce", "runs/t/v/summary.json") == 0
