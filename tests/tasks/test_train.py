"""Both stages through the real commands."""

import errno
import json
import os
import re
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import TINY_F1, TINY_GAN, TINY_LDM, TINY_VAE

from ldmlab.errors import Interrupted
from ldmlab.hydra_errors import find_folder
from ldmlab.modules.autoencoder import AdversarialAutoencoderModule, AutoencoderModule
from ldmlab.modules.latent_diffusion import LatentDiffusionModule
from ldmlab.tasks import build
from ldmlab.tasks.run import provenance

pytestmark = pytest.mark.slow


def stops_at(patch, module, step):
    """Has training of a module asked to stop in the step of this number."""
    training_step = module.training_step

    def stopped(self, batch, index):
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(self, batch, index)

    patch.setattr(module, "training_step", stopped)


def weights(run):
    return load_file(run / "checkpoints" / "model.safetensors")


def test_a_run_leaves_behind_what_the_design_says(trained):
    run = trained / "runs" / "t" / "ldm-f4"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stage"] == "diffusion"
    assert summary["cost"]["steps"] == 12
    assert summary["cost"]["images"] == 96
    assert summary["cost"]["flops"] > 0
    assert summary["cost_autoencoder"]["steps"] == 6
    assert {
        "val/kid_lite0_32@euler2",
        "val/fd_lite0_32@euler2",
        "val/kid_lite0_32@real",
        "val/kid_lite0_32@reconstruction",
        "val/recon_psnr",
        "val/recon_ssim",
        "speed/images_per_s@euler2",
        "speed/latency_s@euler2",
        "speed/denoiser_images_per_s@euler2",
        "speed/decoder_images_per_s@euler2",
        "speed/conditioner_latency_s@euler2",
        "speed/flops_per_image@euler2",
        "speed/nfe@euler2",
        "val/recall_k3_lite0_32@euler2",
        "val/sfd_lite0_32@real",
        "val/recon_ms_ssim_2scales",
        "val/recon_feature_loss_lite0_32",
        "speed/peak_memory_mb@euler2",
    } <= set(summary["metrics"])
    manifest = summary["metrics"]["val/kid_lite0_32@euler2"]["manifest"]
    assert manifest["samples"] == manifest["reference_samples"] == 12
    assert manifest["nfe"] == 4  # two steps, guided
    assert (run / "samples" / "final.png").exists()
    assert len(list((run / "samples").glob("samples-*.png"))) == 1
    assert yaml.safe_load((run / "config.yaml").read_text())["scheduler"]["prediction"] == "velocity"
    assert yaml.safe_load((run / "overrides.yaml").read_text())["command"] == "train-ldm"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["val/kid_lite0_32@euler2"] == summary["metrics"]["val/kid_lite0_32@euler2"]["value"]
    assert json.loads((run / "versions.json").read_text())["versions"]["torch"] == torch.__version__.split("+")[0]


def test_an_autoencoder_logs_its_latents_channel_by_channel(trained):
    run = trained / "runs" / "t" / "vae-f4"
    report = json.loads((run / "summary.json").read_text())["latents"]
    logged = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line)
    for quantity in ("kl", "mean", "std"):
        channels = [logged[f"val/latent_{quantity}@channel{i}"] for i in range(4)]
        assert channels == report[f"{quantity}_per_channel"]
    assert logged["val/latent_min"] == report["min"] < report["max"] == logged["val/latent_max"]
    assert all(kl > 0 for kl in report["kl_per_channel"])


def test_a_saved_model_is_the_moving_average_and_loads_by_itself(trained):
    run = trained / "runs" / "t" / "ldm-f4"
    model, description = build.load_diffusion(run)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    averaged = checkpoint["ema.average.denoiser.conv_in.weight"]
    assert torch.equal(model.network.denoiser.conv_in.weight, averaged)
    assert not torch.equal(checkpoint["model.network.denoiser.conv_in.weight"], averaged)
    assert description["data"]["name"] == "shapes"
    vae = weights(trained / "runs" / "t" / "vae-f4")
    assert torch.equal(model.autoencoder.latent_std, vae["latent_std"])


def test_a_complete_run_is_not_trained_again(copy_of_trained, ldmlab, monkeypatch):
    monkeypatch.setattr(LatentDiffusionModule, "training_step", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(AutoencoderModule, "training_step", lambda *_: pytest.fail("trained again"))
    before = (copy_of_trained / "ldm-f4" / "summary.json").read_bytes()
    same = ["study=t", "name=ldm-f4", "autoencoder_from=runs/t/vae-f4", *TINY_LDM]
    assert ldmlab("train-ldm", *same) == 0
    assert "done already" in ldmlab.said.err
    assert (copy_of_trained / "ldm-f4" / "summary.json").read_bytes() == before


def test_a_complete_run_keeps_its_provenance(copy_of_trained, ldmlab):
    run = copy_of_trained / "ldm-f4"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    arguments = ["study=t", "name=ldm-f4", "autoencoder_from=runs/t/vae-f4", *TINY_LDM, "trainer.grids=0"]
    assert ldmlab("train-ldm", *arguments, "overwrite=true") == 0
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_overwrite_keeps_the_progress_of_the_same_run_and_replaces_a_damaged_one(ldmlab, monkeypatch):
    options = ["study=t", "name=v", *TINY_VAE, "overwrite=true", "trainer.checkpoint_steps=2"]
    step, seen = AutoencoderModule.training_step, []

    def stopped(self, batch, index):
        seen.append(self.global_step)
        if self.global_step == 3 and seen.count(3) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, index)

    monkeypatch.setattr(AutoencoderModule, "training_step", stopped)
    assert ldmlab("train-vae", *options) == 130
    assert ldmlab("train-vae", *options) == 0
    assert seen == [0, 1, 2, 3, 4, 5]
    checkpoint = ldmlab.folder / "runs/t/v/checkpoints/last.ckpt"
    (ldmlab.folder / "runs/t/v/summary.json").unlink()
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "overwrite=true" in ldmlab.error("train-vae", *options[:-2])
    assert ldmlab("train-vae", *options) == 0
    assert len(seen) == 12


def test_a_name_that_is_taken_by_other_settings_is_refused(copy_of_trained, ldmlab):
    before = (copy_of_trained / "ldm-f4" / "summary.json").read_bytes()
    said = ldmlab.error(
        "train-ldm", "study=t", "name=ldm-f4", "autoencoder_from=runs/t/vae-f4", *TINY_LDM, "ema_gamma=3"
    )
    assert "ema_gamma: 12, now 3" in said
    assert (copy_of_trained / "ldm-f4" / "summary.json").read_bytes() == before


@pytest.mark.parametrize("module", [AutoencoderModule, LatentDiffusionModule])
def test_a_run_that_diverged_is_complete_neither_then_nor_at_the_next_start(ldmlab, monkeypatch, module):
    command = "train-vae" if module is AutoencoderModule else "train-ldm"
    step = module.training_step

    def diverges(self, batch, index):
        loss = step(self, batch, index)
        if self.global_step == 5:
            next(self.parameters()).data.fill_(float("nan"))
        return loss

    options = TINY_VAE if command == "train-vae" else TINY_F1
    monkeypatch.setattr(module, "training_step", diverges)
    for _ in range(2):  # the second finds a checkpoint whose budget is used up
        assert "training has diverged" in ldmlab.error(command, "study=t", "name=r", *options)
    assert not (ldmlab.folder / "runs/t/r/summary.json").exists()


def test_an_unfinished_autoencoder_of_a_run_can_be_replaced_and_a_complete_one_cannot(ldmlab, monkeypatch):
    """Only a complete one may be what other runs stand on."""
    with monkeypatch.context() as patch:
        stops_at(patch, AutoencoderModule, 2)
        assert ldmlab("train-ldm", "study=t", "name=d", *TINY_LDM) == 130
    other = ["study=t", "name=d", *TINY_LDM, "budget.steps=6"]
    said = ldmlab.error("train-ldm", *other)
    assert "runs/t/vae-f4-batch_size-8-network.channels-16 holds a run with other settings" in said
    assert "overwrite=true" in said
    assert ldmlab("train-ldm", *other, "overwrite=true") == 0
    assert "deleted, and begun anew" in ldmlab.said.err
    said = ldmlab.error("train-ldm", "study=t", "name=e", *TINY_LDM, "budget.steps=8", "overwrite=true")
    assert "use it with autoencoder_from=runs/t/vae-f4" in said

    # nor one that somebody trains by itself, which may have taken days
    with monkeypatch.context() as patch:
        stops_at(patch, AutoencoderModule, 2)
        assert ldmlab("train-vae", "study=own", "name=vae-f4-batch_size-8-network.channels-16", *TINY_VAE) == 130
    assert "its own command" in ldmlab.error("train-ldm", "study=own", *TINY_LDM, "budget.steps=8", "overwrite=true")


def test_a_number_of_threads_is_that_of_one_run(ldmlab, monkeypatch):
    from ldmlab.tasks import training

    monkeypatch.setattr(training, "THREADS", 2)
    options = [option for option in TINY_VAE if not option.startswith("trainer.threads")]
    for name, threads in (("one", "1"), ("own", "null")):
        assert ldmlab("train-vae", "study=t", f"name={name}", *options, f"trainer.threads={threads}") == 0
    summaries = [json.loads((ldmlab.folder / f"runs/t/{name}/summary.json").read_text()) for name in ("one", "own")]
    assert [summary["threads"] for summary in summaries] == [1, 2]
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("command", "module", "options", "name"),
    [
        ("train-vae", AutoencoderModule, TINY_VAE, "vae-f4"),
        ("train-vae", AdversarialAutoencoderModule, TINY_GAN, "gan"),
        ("train-ldm", LatentDiffusionModule, TINY_F1, "ldm-f1"),
        ("train-ldm", LatentDiffusionModule, TINY_LDM, "ldm-f4"),
        ("train-ldm", LatentDiffusionModule, [*TINY_F1, "trainer.lightning.accumulate_grad_batches=2"], "twice"),
    ],
    ids=["autoencoder", "adversarial", "pixels", "latents", "accumulated"],
)
@pytest.mark.parametrize("how", ["signal", "crash"])
def test_a_run_stopped_in_the_middle_and_resumed_ends_with_bitwise_the_same_weights(
    command, module, options, name, how, ldmlab, monkeypatch
):
    options = [*options, f"name={name}", "trainer.checkpoint_steps=2"]
    assert ldmlab(command, "study=whole", *options) == 0

    step, stops = module.training_step, []

    def stopped(self, batch, index):
        if self.global_step == 3 and not stops:
            stops.append(index)
            if how == "crash":
                raise RuntimeError("power cut")
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(module, "training_step", stopped)
        if how == "crash":
            assert ldmlab(command, "study=cut", *options) == 1
            assert "power cut" in ldmlab.said.err
        else:
            assert ldmlab(command, "study=cut", *options) == 130
            assert "goes on from there" in ldmlab.said.err
    assert not (ldmlab.folder / "runs/cut" / name / "summary.json").exists()
    assert ldmlab(command, "study=cut", *options) == 0

    whole, cut = (ldmlab.folder / "runs" / study / name for study in ("whole", "cut"))
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(cut)[key]), key
    raw = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (whole, cut)]
    assert all(torch.equal(value, raw[1][key]) for key, value in raw[0].items())
    costs = [json.loads((run / "summary.json").read_text())["cost"] for run in (whole, cut)]
    assert costs[0]["images"] == costs[1]["images"]
    assert costs[0]["flops"] == costs[1]["flops"]


def test_f1_runs_on_the_same_code_without_an_autoencoder_run(ldmlab):
    assert ldmlab("train-ldm", "study=t", "name=pixels", *TINY_F1, "scheduler=linear", "sampler=ddpm") == 0
    assert [path.name for path in (ldmlab.folder / "runs/t").iterdir() if path.is_dir()] == ["pixels"]
    summary = json.loads((ldmlab.folder / "runs/t/pixels/summary.json").read_text())
    assert summary["cost_autoencoder"] is None
    assert summary["metrics"]["speed/nfe@ddpm2"]["value"] == 4
    model, _ = build.load_diffusion(ldmlab.folder / "runs/t/pixels")
    assert (model.autoencoder.latent_std - 1).abs().min() > 0.1  # measured, not left at its default


def test_an_unconditional_model_is_trained_and_sampled_without_guidance(ldmlab):
    assert ldmlab("train-ldm", "study=t", "name=pixels", "conditioner=none", *TINY_F1) == 0
    summary = json.loads((ldmlab.folder / "runs/t/pixels/summary.json").read_text())
    assert summary["metrics"]["speed/nfe@euler2"]["value"] == 2
    assert ldmlab("sample", "from=runs/t/pixels", "n=3") == 0
    assert len(list((ldmlab.folder / "runs/t/pixels/samples").glob("*/0*.png"))) == 3


def test_a_sweep_trains_an_autoencoder_for_each_factor_once_and_compares(ldmlab, monkeypatch):
    assert ldmlab("train-ldm", "-m", "study=s", "name=${downsampling.name}", "downsampling=f1,f2,f4", *TINY_LDM) == 0
    study = ldmlab.folder / "runs/s"
    assert (study / "comparison.html").exists()
    costs = {name: json.loads((study / name / "summary.json").read_text()) for name in ("f2", "f4")}
    # f1 takes the settings of the others' autoencoders and trains none
    assert json.loads((study / "f1" / "summary.json").read_text())["cost_autoencoder"] is None
    assert not list(study.glob("vae-f1*"))
    # steps of one stage are none of the other's: diffusion has all 12, the autoencoder its share of as many
    assert [(cost["cost_autoencoder"]["steps"], cost["cost"]["steps"]) for cost in costs.values()] == [(6, 12)] * 2
    assert len(list(study.glob("vae-f2*"))) == len(list(study.glob("vae-f4*"))) == 1

    # another study of diffusion on the same autoencoder: neither it nor its latents are made again
    monkeypatch.setattr(AutoencoderModule, "training_step", lambda *_: pytest.fail("trained again"))
    caches = set((ldmlab.folder / "runs" / ".cache" / "latents").iterdir())
    assert ldmlab("train-ldm", "study=s", "scheduler=cosine", *TINY_LDM) == 0
    assert len(list(study.glob("ldm-f4*scheduler-cosine*"))) == 1
    assert set((ldmlab.folder / "runs" / ".cache" / "latents").iterdir()) == caches
    # and yet it is charged for both, as the first one was
    second = json.loads(next(study.glob("ldm-f4*scheduler-cosine*/summary.json")).read_text())
    assert second["cost_autoencoder"] == costs["f4"]["cost_autoencoder"]


@pytest.fixture
def experiments(tmp_path, monkeypatch):
    """An empty folder in place of experiments/."""
    import ldmlab.hydra_app as app

    folder, original = tmp_path / "experiments", app.find_folder
    folder.mkdir()
    monkeypatch.setattr(app, "find_folder", lambda name: folder if name == "experiments" else original(name))
    return folder


def test_an_experiment_file_may_be_a_sweep(ldmlab, experiments):
    (experiments / "two.yaml").write_text(
        "defaults:\n  - override /sampler: ddim\nstudy: two\nname: ${downsampling.name}-${seed}\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n"
    )
    assert ldmlab("train-ldm", "experiment=two", *TINY_F1) == 0
    metrics = json.loads((ldmlab.folder / "runs/two/f1-1/summary.json").read_text())["metrics"]
    assert "val/kid_lite0_32@ddim2" in metrics
    assert (ldmlab.folder / "runs/two/f1-0/summary.json").exists()
    # the command line has the last word, and there is one job then
    assert ldmlab("train-ldm", "experiment=two", "seed=1", *TINY_F1) == 0
    assert "job 1 of 1: " in ldmlab.said.err
    (experiments / "two.yaml").write_text("study: two\nbatch_sise: 3\n")
    (experiments / "my-two.yaml").write_text("study: two\nbatch_sise: 3\n")
    for name in ("two", "my-two", "[two,my-two]"):
        said = ldmlab.error("train-ldm", f"experiment={name}", *TINY_F1)
        assert "unknown key 'batch_sise'; did you mean batch_size?" in said


@pytest.mark.parametrize("path", sorted(find_folder("experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_experiment_composes(ldmlab, monkeypatch, path):
    asked = []
    monkeypatch.setattr("ldmlab.tasks.run_task", lambda command, config, overrides: asked.append(config))
    text = path.read_text()
    needed = ["data.path=photos"] if "override /data: parquet" in text else []
    command = re.findall(r"ldmlab (\S+) .*experiment=", text)[-1] if path.stem != "demo" else "train-ldm"
    assert ldmlab(command, f"experiment={path.stem}", *needed) == 0
    assert asked
    if command != "evaluate" and "\nstudy: " in text:
        assert {config["study"] for config in asked} == {path.stem}
    if len(asked) > 1:
        assert f"job 2 of {len(asked)}: " in ldmlab.said.err


OPTIONS = [
    f"{path.parent.relative_to(find_folder('conf'))}={path.stem}"
    for path in sorted(find_folder("conf").glob("*/**/*.yaml"))
    if path.stem != "as_trained"
]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes_alone_and_in_a_study(ldmlab, experiments, monkeypatch, option):
    asked = []
    monkeypatch.setattr("ldmlab.tasks.run_task", lambda command, config, overrides: asked.append(config))
    needed = {"parquet": ["data.path=d"], "imagefolder": ["data.path=d"], "hub": ["data.name=a/b"]}
    needed["pretrained"] = ["autoencoder.path=p"]
    needed["autoguidance"] = ["guidance.guide=runs/a/b"]
    needed["composition"] = ["guidance.scales={class:2}"]
    group, name = option.split("=")
    (experiments / "own.yaml").write_text(f"defaults:\n  - override /{group}: {name}\nbatch_size: 5\n")
    assert ldmlab("train-ldm", option, *needed.get(name, [])) == 0
    assert ldmlab("train-ldm", "experiment=own", *needed.get(name, [])) == 0
    alone, study = asked
    assert alone["choices"][group] == study["choices"][group] == name
    assert {**alone, "batch_size": 5} == {**study, "choices": alone["choices"]}


def test_the_demo_runs_both_factors_and_compares_them(ldmlab):
    assert ldmlab("demo", *TINY_LDM) == 0
    study = ldmlab.folder / "runs" / "demo"
    assert {path.parent.name[:6] for path in study.glob("*/summary.json")} == {"vae-f4", "ldm-f4", "ldm-f1"}
    assert (study / "comparison.html").exists()


def test_what_a_sweep_says_of_autoencoders_makes_no_second_run_of_f1(ldmlab, capfd):
    sweep = ["-m", "study=s", "downsampling=f1", "autoencoder.network.regularizer.weight=1e-4,1e-3"]
    assert ldmlab("train-ldm", *sweep, *[option for option in TINY_F1 if option != "downsampling=f1"]) == 0
    assert len(list((ldmlab.folder / "runs/s").glob("*/summary.json"))) == 1
    assert "done already" in ldmlab.said.err


def test_a_study_may_use_data_of_the_users_own_folder(ldmlab, experiments, monkeypatch):
    asked = {}
    monkeypatch.setattr("ldmlab.tasks.run_task", lambda command, config, overrides: asked.update(config))
    (ldmlab.folder / "mine" / "data").mkdir(parents=True)
    (ldmlab.folder / "mine" / "data" / "photos.yaml").write_text("defaults: [shapes]\nimage_size: 24\n")
    (experiments / "own.yaml").write_text("defaults:\n  - override /data: photos\ndata: {zoom: 1.0}\n")
    assert ldmlab("train-ldm", "--config-dir", "mine", "experiment=own") == 0
    assert asked["data"]["image_size"] == 24
    said = ldmlab.error("train-ldm", "--config-dir", "mine", "data=photos", "data.image_sise=24")
    assert "did you mean data.image_size?" in said


def test_an_experiment_file_that_puts_a_word_in_place_of_a_group_is_told_how_to_choose(ldmlab, experiments):
    (experiments / "own.yaml").write_text("scheduler: cosine\n")
    assert "override /scheduler" in ldmlab.error("train-ldm", "experiment=own", *TINY_F1)


def test_an_experiment_file_has_the_last_word_but_for_the_command_line(ldmlab, experiments, monkeypatch):
    asked = {}
    monkeypatch.setattr("ldmlab.tasks.run_task", lambda command, config, overrides: asked.update(config))
    (experiments / "own.yaml").write_text("batch_size: 5\nema_gamma: 3\nbudget: {cpu_seconds: 77}\n")
    assert ldmlab("train-ldm", "experiment=own", "ema_gamma=4") == 0
    assert (asked["batch_size"], asked["ema_gamma"], asked["budget"]["cpu_seconds"]) == (5, 4, 77)


def test_a_job_of_a_sweep_that_breaks_is_said_and_does_not_stop_the_others(ldmlab, monkeypatch):
    trained = []

    def run_task(command, config, overrides):
        if config["seed"] == 0:
            raise KeyError("choices")
        trained.append(config["seed"])

    monkeypatch.setattr("ldmlab.tasks.run_task", run_task)
    assert ldmlab("train-ldm", "-m", "study=s", "seed=0,1,2", *TINY_F1) == 1
    assert trained == [1, 2]
    assert "Traceback" in ldmlab.said.err
    assert "ldmlab: KeyError: 'choices'" in ldmlab.said.err


def test_a_sweep_that_is_interrupted_begins_no_further_job(ldmlab, monkeypatch):
    begun = []

    def run_task(command, config, overrides):
        begun.append(config["seed"])
        raise Interrupted("stopped", 130) if config["seed"] == 0 else AssertionError

    monkeypatch.setattr("ldmlab.tasks.run_task", run_task)
    # the second job cannot be composed, and is no reason to begin the third
    assert ldmlab("train-ldm", "-m", "study=s", "seed=0,${oc.env:NOWHERE},2", *TINY_F1) == 130
    assert begun == [0]
    assert "job 2 of 3" not in ldmlab.said.err


def test_a_launcher_that_loses_a_process_leaves_what_was_done(ldmlab, monkeypatch):
    class TerminatedWorkerError(Exception):
        """What joblib raises."""

    counted = []

    def ends(*given):
        counted.append(given)
        if len(counted) == 2:
            raise error
        return {}

    monkeypatch.setattr("ldmlab.hydra_app.sweep", ends)  # outside of what a job catches
    error = TerminatedWorkerError("a worker process was killed\nexit code SIGKILL")
    assert ldmlab("train-ldm", "-m", "study=s", "seed=0,1", *TINY_F1) == 2
    assert "failed: the sweep: TerminatedWorkerError: a process of it was lost" in ldmlab.said.err
    assert "exit code SIGKILL" in ldmlab.said.err
    assert "Traceback" not in ldmlab.said.err
    assert (ldmlab.folder / "runs/s/comparison.html").exists()

    counted.clear()
    error = KeyError("our own fault")
    assert ldmlab("train-ldm", "-m", "study=s", "seed=0,1", *TINY_F1) == 1
    assert "Traceback" in ldmlab.said.err


def test_a_full_disk_ends_in_one_line(ldmlab, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/t/vae-f4/config.yaml")

    monkeypatch.setattr("ldmlab.tasks.run.write_text", full)
    assert "the disk is full (runs/t/vae-f4/config.yaml)" in ldmlab.error("train-vae", "study=t", *TINY_VAE)


def test_the_default_logger_keeps_offline_wandb_runs_of_both_stages(ldmlab):
    options = [option for option in TINY_LDM if not option.startswith("logger=")]
    assert ldmlab("train-ldm", "study=w", *options) == 0
    runs = [path.parent for path in (ldmlab.folder / "runs/w").glob("*/summary.json")]
    assert len(runs) == 2
    for run in runs:
        assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert len(list((ldmlab.folder / "runs/w/wandb").glob("offline-run-*"))) == 2  # side by side


def test_a_run_that_goes_on_is_the_same_run_at_wandb(ldmlab, monkeypatch):
    options = [option for option in TINY_F1 if not option.startswith("logger=")]
    with monkeypatch.context() as patch:
        stops_at(patch, LatentDiffusionModule, 3)
        assert ldmlab("train-ldm", "study=w", "name=w", *options) == 130
    assert ldmlab("train-ldm", "study=w", "name=w", *options) == 0
    parts = list((ldmlab.folder / "runs/w/w/wandb").glob("offline-run-*/*.wandb"))
    assert len({part.parent for part in parts}) == 2 or len(parts) == 1  # both starts may be within one second
    assert {part.stem.removeprefix("run-") for part in parts} == {(ldmlab.folder / "runs/w/w/wandb/id").read_text()}


def test_flops_are_shared_by_both_stages(ldmlab):
    limit = 2e9
    assert ldmlab("train-ldm", "study=t", "name=a", *TINY_LDM, "budget.steps=null", f"budget.flops={limit}") == 0
    summary = json.loads((ldmlab.folder / "runs/t/a/summary.json").read_text())
    first, second = summary["cost_autoencoder"]["flops"], summary["cost"]["flops"]
    assert limit / 2 <= first < 0.6 * limit
    assert limit <= first + second < 1.2 * limit


def test_a_budget_may_be_images_or_flops(ldmlab):
    assert ldmlab("train-ldm", "study=t", "name=a", *TINY_F1, "budget.steps=null", "budget.images=24") == 0
    cost = json.loads((ldmlab.folder / "runs/t/a/summary.json").read_text())["cost"]
    assert cost["steps"] == 3
    flops = cost["flops"] * 1.01
    assert ldmlab("train-ldm", "study=t", "name=b", *TINY_F1, "budget.steps=null", f"budget.flops={flops}") == 0
    assert json.loads((ldmlab.folder / "runs/t/b/summary.json").read_text())["cost"]["steps"] == 4


def test_the_autoencoder_of_a_run_brings_its_own_settings(ldmlab):
    """Stage two is told nothing of its size, and the model that it leaves can be loaded again."""
    small = [option for option in TINY_VAE if "channels" not in option]
    larger = ["autoencoder.network.channels=24", "downsampling.latent_channels=6"]
    assert ldmlab("train-vae", "study=t", "name=v", *small, *larger) == 0
    stage_two = [option for option in TINY_LDM if not option.startswith(("autoencoder.", "autoencoder_share"))]
    assert ldmlab("train-ldm", "study=t", "name=d", "autoencoder_from=runs/t/v", *stage_two) == 0
    model, _ = build.load_diffusion(ldmlab.folder / "runs/t/d")
    assert model.autoencoder.latent_channels == 6
    said = ldmlab.error(
        "train-ldm", "study=t", "name=e", "autoencoder_from=runs/t/v", *stage_two, "downsampling.latent_channels=8"
    )
    assert "downsampling.latent_channels: runs/t/v was trained with 6" in said


def test_a_handful_of_images_is_measured_and_timed(ldmlab):
    assert ldmlab("train-ldm", "study=t", "name=few", *TINY_F1, "metrics.samples=6", "metrics.speed_repeats=3") == 0
    summary = json.loads((ldmlab.folder / "runs/t/few/summary.json").read_text())
    assert summary["metrics"]["speed/images_per_s@euler2"]["manifest"]["repeats"] == 3
    assert summary["cost_measuring"]["seconds"] > 0


def test_measuring_can_be_made_cheap(ldmlab):
    options = ["metrics.speed_repeats=0", "metrics.distances=[kid]", "metrics.preview_every=2", "metrics.previews=1"]
    options += ["metrics.fidelity=false"]
    assert ldmlab("train-ldm", "study=t", "name=cheap", *TINY_F1, *options) == 0
    run = ldmlab.folder / "runs/t/cheap"
    assert set(json.loads((run / "summary.json").read_text())["metrics"]) == {
        "val/kid_lite0_32@real",
        "val/kid_lite0_32@euler2",
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    previews = [line for line in lines if "val/kid_lite0_32@preview" in line]
    # after steps 2 and 4, half the budget being reached after 3; at the end everything is measured
    assert [line["step"] for line in previews] == [2, 3, 5]
    spent = [line["cost/measuring_seconds"] for line in lines if "cost/measuring_seconds" in line]
    assert spent == sorted(spent)
    assert spent[0] > 0


def test_a_machine_without_git_is_no_obstacle(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError(2, "No such file or directory", "git")

    monkeypatch.setattr("ldmlab.tasks.run.subprocess.run", missing)
    assert provenance()["git"] is None
