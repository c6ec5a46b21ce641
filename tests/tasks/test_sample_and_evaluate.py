import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import TINY_F1, TINY_LDM

from ldmlab.data.loader import random_subset
from ldmlab.data.shapes import Shapes

pytestmark = pytest.mark.slow


def test_sample_writes_images_that_say_how_they_were_made(copy_of_trained, ldmlab):
    arguments = ["sample", "from=runs/t/ldm-f4", "label=red circle", "n=3", "output=out", "batch_size=2"]
    assert ldmlab(*arguments) == 0
    files = sorted(path.name for path in (ldmlab.folder / "out").iterdir())
    assert files == ["00000.png", "00001.png", "00002.png", "grid.png"]
    image = Image.open(ldmlab.folder / "out" / "00001.png")
    assert image.size == (16, 16)
    making = json.loads(image.text["ldmlab"])
    assert making["label"] == "red circle"
    assert making["seed"] == "0/1"
    assert making["sampler"]["steps"] == 2


def test_more_images_do_not_change_the_first_ones(copy_of_trained, ldmlab):
    for name, n in (("few", 2), ("more", 3)):
        ldmlab("sample", "from=runs/t/ldm-f4", "label=[red circle,5]", f"n={n}", f"output={name}", f"batch_size={n}")
    few, more = (list(Image.open(ldmlab.folder / name / "00001.png").tobytes()) for name in ("few", "more"))
    assert max(abs(a - b) for a, b in zip(few, more, strict=True)) <= 1


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("label=red sircle", "no class 'red sircle'"),
        ("label=64", "no class '64'"),
        ("n=0", "n: a whole number of 1 or more"),
        ("guidance.scal=3", "guidance.scale"),
        ("from=runs/t/vae-f4", "autoencoder stage"),
    ],
)
def test_a_wrong_wish_ends_in_one_line(copy_of_trained, ldmlab, argument, said):
    arguments = [argument] if argument.startswith("from=") else ["from=runs/t/ldm-f4", argument]
    assert said in ldmlab.error("sample", *arguments)


def test_evaluate_adds_other_samplers_to_the_run_and_gives_the_same_number_again(copy_of_trained, ldmlab):
    run = copy_of_trained / "ldm-f4"
    before = json.loads((run / "summary.json").read_text())["metrics"]
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", "sampler=ddim", "sampler.steps=1,2", "-m") == 0
    after = json.loads((run / "summary.json").read_text())["metrics"]
    assert before.items() <= after.items()
    assert after["val/kid_lite0_32@ddim1"]["manifest"]["nfe"] == 2
    # ddim with eta 0 is euler, so the run's own measurement is repeated: its seeds, labels and reference are the same
    assert after["val/kid_lite0_32@ddim2"]["value"] == pytest.approx(
        before["val/kid_lite0_32@euler2"]["value"], abs=1e-4
    )
    assert ldmlab("evaluate", "from=runs/t/ldm-f4") == 0
    again = json.loads((run / "summary.json").read_text())["metrics"]
    name = "val/kid_lite0_32@euler2"
    assert again[name]["value"] == before[name]["value"]


@pytest.mark.parametrize(
    ("options", "detail", "evaluations"),
    [
        (["guidance.scale=1"], "euler2-scale1", 2),
        (["guidance=none"], "euler2-noguidance", 2),
        (["sampler=ddim", "sampler.steps=2", "sampler.eta=1.0"], "ddim2-eta1.0", 4),
        (["sampler=ddpm", "sampler.steps=3", "sampler.variance=large"], "ddpm3-variancelarge", 6),
        (["sampler=dpmpp_2m", "sampler.steps=3", "sampler.grid=logsnr"], "dpmpp2m3-gridlogsnr", 6),
        (["sampler=unipc", "nfe=5"], "unipc5", 10),
        (["sampler=heun", "nfe=6"], "heun3", 10),
        (["sampler=plms", "nfe=6", "guidance=none"], "plms5-noguidance", 6),
        (["guidance=rescale"], "euler2-rescale0.7-scale5.0", 4),
        (["guidance=interval"], "euler2-scale3.0-start0.2-stop0.8", 3),
        (["guidance.batched=false"], "euler2-batchedFalse", 4),
        (["guidance=autoguidance", "guidance.guide=runs/t/ldm-f4"], "euler2-guideruns_t_ldm-f4", 4),
        (["sampler.grid={_target_: ldmlab.diffusion.grids.Karras, rho: 3.0}"], "euler2-gridkarras-rho3.0", 4),
        (["metrics.samples=10"], "euler2-n10-seed0", 4),
    ],
)
def test_every_setting_is_another_row(copy_of_trained, ldmlab, options, detail, evaluations):
    run = copy_of_trained / "ldm-f4"
    before = json.loads((run / "summary.json").read_text())["metrics"]
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", *options) == 0
    after = json.loads((run / "summary.json").read_text())["metrics"]
    assert before.items() <= after.items()
    assert after[f"val/kid_lite0_32@{detail}"]["manifest"]["nfe"] == evaluations


def test_the_bound_is_measured_in_bits_of_latents_and_reproduced(copy_of_trained, ldmlab):
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", "metrics=likelihood", "metrics.likelihood.times=4") == 0
    assert "bits/dim (density of normalised latents; prior" in ldmlab.said.err
    metrics = summary_of(copy_of_trained / "ldm-f4")["metrics"]
    detail = "chain1000-small"
    whole, *parts = (
        metrics[f"val/latent_bound{part}_bits_per_dim@{detail}"]["value"]
        for part in ("", "_prior", "_diffusion", "_decoder")
    )
    assert whole == pytest.approx(sum(parts))
    assert metrics[f"val/latent_bound_bits_per_dim@{detail}"]["manifest"]["terms_per_image"] == 6
    assert ldmlab("evaluate", "--reproduce", "runs/t/ldm-f4/summary.json") == 0
    assert ldmlab("compare", "runs/t") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["from=runs/t/vae-f4"], "likelihood is that of a diffusion model"),
        (["from=runs/t/ldm-f4", "sampler=ddim"], "sampler: the variational bound is of the model alone"),
        (["from=runs/t/ldm-f4", "metrics.likelihood.variance=learned"], "has not learned its variance"),
        (["from=runs/t/ldm-f4", "metrics.likelihood.variance=huge"], "auto or one of small, large, learned"),
        (["from=runs/t/ldm-f4", "metrics.likelihood.times=0"], "metrics.likelihood.times"),
        (["from=runs/t/ldm-f4", "metrics.likelihood.steps=1001"], "1001 reach noise levels below the smallest"),
        (["from=runs/t/ldm-f4", "metrics.likelihood=true"], "choose the group metrics=likelihood, not True"),
        (["from=runs/t/ldm-f4", "nfe=10"], "nfe: the variational bound is of the model alone"),
    ],
)
def test_a_bound_that_cannot_be_measured_is_refused(copy_of_trained, ldmlab, arguments, said):
    assert said in ldmlab.error("evaluate", "metrics=likelihood", *arguments)


def test_nothing_is_measured_before_all_that_was_asked_for_is_built(copy_of_trained, ldmlab, monkeypatch):
    monkeypatch.setattr("ldmlab.tasks.trained.quality_of", lambda *_: pytest.fail("images were measured"))
    for asked, said in (
        (["sampler=heun", "sampler.s_churn=-1"], "sampler.s_churn: a number of 0 or more"),
        (["sampler._target_=ldmlab.diffusion.samplers.DDIMM"], "sampler: "),
        (["sampler._target_=builtins.dict", "nfe=5"], "is no sampler"),
        (["guidance.scale=strong"], "guidance.scale: a number is needed, not strong"),
        (["guidance.rescaled=1"], "guidance.rescaled"),
    ):
        assert said in ldmlab.error("evaluate", "from=runs/t/ldm-f4", *asked)
    assert "which samples nothing" in ldmlab.error("evaluate", "from=runs/t/vae-f4", "nfe=5")


def test_a_run_is_guided_by_one_on_the_autoencoder_that_it_trains_or_finds(copy_of_trained, ldmlab):
    guided = ["guidance=autoguidance", "guidance.guide=runs/t/ldm-f4"]
    assert ldmlab("train-ldm", "study=t", "name=guided", *guided, *TINY_LDM) == 0
    detail = "val/kid_lite0_32@euler2"
    metrics = summary_of(copy_of_trained / "guided")["metrics"]
    assert metrics[detail]["manifest"]["guide"]
    assert metrics[detail]["manifest"]["nfe"] == 4


def test_a_sampler_that_cannot_serve_the_model_s_training_is_refused(copy_of_trained, ldmlab):
    for command in ("sample", "evaluate"):
        said = ldmlab.error(command, "from=runs/t/ldm-f4", "sampler=ddpm", "sampler.variance=learned")
        assert "has not learned its variance" in said


def test_a_guide_of_another_autoencoder_or_path_is_refused(copy_of_trained, ldmlab):
    said = ldmlab.error("evaluate", "from=runs/t/ldm-f4", "guidance=autoguidance", "guidance.guide=runs/none")
    assert "guidance.guide: no such run" in said
    assert ldmlab("train-ldm", "study=t", "name=other", *TINY_F1) == 0
    said = ldmlab.error("sample", "from=runs/t/ldm-f4", "guidance=autoguidance", "guidance.guide=runs/t/other")
    assert "has another autoencoder" in said
    same = ["autoencoder_from=runs/t/vae-f4", "scheduler=cosine", "name=path"]
    assert ldmlab("train-ldm", "study=t", *same, *TINY_LDM) == 0
    said = ldmlab.error("sample", "from=runs/t/ldm-f4", "guidance=autoguidance", "guidance.guide=runs/t/path")
    assert "on another path" in said


def test_a_model_with_learned_variance_in_pixels_from_training_to_bits_per_pixel(ldmlab):
    improved = ["scheduler=improved_ddpm", "scheduler/times=importance", "scheduler.learned_uncertainty=true"]
    assert ldmlab("train-ldm", "study=t", "name=p", *TINY_F1, *improved) == 0
    sweep = ["sampler=ddpm", "sampler.variance=small,large,learned", "sampler.steps=2", "-m"]
    assert ldmlab("evaluate", "from=runs/t/p", *sweep) == 0
    assert ldmlab("evaluate", "from=runs/t/p", "metrics=likelihood", "metrics.likelihood.times=4") == 0
    metrics = summary_of(ldmlab.folder / "runs/t/p")["metrics"]
    for detail in ("ddpm2", "ddpm2-variancelarge", "ddpm2-variancelearned"):
        assert f"val/kid_lite0_32@{detail}" in metrics
    bound = metrics["val/bound_bits_per_dim@chain1000-learned"]
    assert bound["value"] > 0
    assert bound["manifest"]["bits_per_dimension_of"] == "8-bit pixels"


def test_evaluate_with_other_features_brings_their_floors(copy_of_trained, ldmlab):
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", "metrics.features.input_size=64") == 0
    metrics = json.loads((copy_of_trained / "ldm-f4" / "summary.json").read_text())["metrics"]
    assert {f"val/kid_lite0_64@{detail}" for detail in ("euler2", "real", "reconstruction")} <= set(metrics)


def test_evaluate_on_other_images_brings_their_floors(copy_of_trained, ldmlab):
    """The Fréchet distance means nothing without its floor at the same N."""
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", "metrics.samples=10") == 0
    metrics = json.loads((copy_of_trained / "ldm-f4" / "summary.json").read_text())["metrics"]
    for detail in ("real", "reconstruction"):
        assert metrics[f"val/fd_lite0_32@{detail}-n10-seed0"]["manifest"]["samples"] == 10
    assert ldmlab("compare", "runs/t") == 0
    rows = json.loads((copy_of_trained / "comparison.json").read_text())
    row = next(row for row in walk(rows) if row.get("kid_samples") == 10)
    assert row["frechet_real"] == metrics["val/fd_lite0_32@real-n10-seed0"]["value"]
    assert row["frechet_reconstruction"] == metrics["val/fd_lite0_32@reconstruction-n10-seed0"]["value"]
    assert not any("real-n10" in str(found.get("setting")) for found in walk(rows))


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def test_a_summary_is_reproduced_to_the_last_digit_and_left_as_it_is(copy_of_trained, ldmlab):
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", "sampler=ddim", "sampler.steps=1", "metrics.samples=10") == 0
    # the same setting with other eyes, and then with fewer distances
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", "metrics.features.input_size=64") == 0
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", "metrics.features.input_size=64", "metrics.distances=[kid]") == 0
    text = (copy_of_trained / "ldm-f4" / "summary.json").read_text()
    assert ldmlab("evaluate", "--reproduce", "runs/t/ldm-f4/summary.json") == 0
    (line,) = (line for line in ldmlab.said.err.splitlines() if "reproduced" in line)
    judged = sum(not name.startswith("speed/") for name in json.loads(text)["metrics"])
    assert line == f"runs/t/ldm-f4: {judged} values reproduced, {judged} of them to the last digit"
    assert (copy_of_trained / "ldm-f4" / "summary.json").read_text() == text
    assert ldmlab("evaluate", "--reproduce=runs/t/vae-f4/summary.json") == 0
    assert "to the last digit" in ldmlab.said.err


def test_a_number_that_was_not_measured_is_found_out(copy_of_trained, ldmlab):
    path = copy_of_trained / "ldm-f4" / "summary.json"
    summary = json.loads(path.read_text())
    summary["metrics"]["val/fd_lite0_32@euler2"]["value"] *= 0.9
    path.write_text(json.dumps(summary))
    said = ldmlab.error("evaluate", "--reproduce", str(path))
    assert "1 of" in said
    assert "val/fd_lite0_32@euler2" in said


def test_a_number_that_no_recipe_explains_is_found_out(copy_of_trained, ldmlab):
    path = copy_of_trained / "ldm-f4" / "summary.json"
    summary = json.loads(path.read_text())
    summary["metrics"]["val/fd_lite0_32@euler99"] = summary["metrics"]["val/fd_lite0_32@euler2"]
    path.write_text(json.dumps(summary))
    assert "1 of" in (said := ldmlab.error("evaluate", "--reproduce", str(path)))
    assert "were not measured: val/fd_lite0_32@euler99" in said


def test_reproduce_needs_a_summary(ldmlab):
    assert "which summary" in ldmlab.error("evaluate", "--reproduce")
    assert "no such run" in ldmlab.error("evaluate", "--reproduce", "runs/x/summary.json")
    assert "from: which run" in ldmlab.error("evaluate")


def test_another_batch_size_changes_nothing_but_the_last_digits(copy_of_trained, ldmlab):
    run = copy_of_trained / "ldm-f4"
    before = summary_of(run)["metrics"]
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", "metrics.sampling_batch=5") == 0
    after = summary_of(run)["metrics"]
    names = [name for name in before if name.startswith("val/") and name.endswith("@euler2")]
    assert len(names) == 11 + 4  # distances, and what the oracle reads
    for name in names:
        assert after[name]["value"] == pytest.approx(before[name]["value"], rel=1e-3, abs=1e-5)


def test_two_processes_measure_what_one_does(copy_of_trained, ldmlab):
    """A sweep of two settings, in two processes that make the reference together, and in one alone."""
    one, two = copy_of_trained / "ldm-f4", copy_of_trained / "two"
    shutil.copytree(one, two)
    asked = ["metrics.samples=11", "sampler.steps=1,2", "-m"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ldmlab"]
    done = subprocess.run(
        [*command, "evaluate", "from=runs/t/two", "cache_dir=fresh", *asked],
        cwd=ldmlab.folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("real against real") == 2  # one of them speaks, once for each setting
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", *asked) == 0
    by_one, by_two = summary_of(one)["metrics"], summary_of(two)["metrics"]
    assert by_one.keys() == by_two.keys()
    names = [name for name in by_one if "n11-seed0" in name and not name.startswith("speed/")]
    assert len(names) > 45
    for name in names:
        # likeness is that of objects, which pictures of an untrained model need not have
        seen = by_one[name]["manifest"]["samples"] if "likeness" in name else 11
        assert by_two[name]["manifest"]["samples"] == seen
        # what is read in pictures without any shapes hangs on their last digits
        least = 0.02 if "oracle" in name else 1e-5
        assert by_two[name]["value"] == pytest.approx(by_one[name]["value"], rel=1e-3, abs=least), name


def test_an_autoencoder_is_evaluated_too(copy_of_trained, ldmlab):
    assert ldmlab("evaluate", "from=runs/t/vae-f4", "metrics.features.input_size=64", "metrics.samples=10") == 0
    metrics = summary_of(copy_of_trained / "vae-f4")["metrics"]
    assert {"val/kid_lite0_64@reconstruction-n10-seed0", "val/recon_psnr@n10-seed0"} <= set(metrics)
    assert "samples nothing" in ldmlab.error("evaluate", "from=runs/t/vae-f4", "sampler.steps=3")


@pytest.mark.parametrize("name", ["ldm-f4", "vae-f4"])
def test_the_network_of_the_loss_is_refused_as_judge(copy_of_trained, ldmlab, name):
    model = copy_of_trained / name / "checkpoints" / "model.yaml"
    description = yaml.safe_load(model.read_text())
    assert description["trained_against"] == []
    description["trained_against"] = ["579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"]
    model.write_text(yaml.safe_dump(description))
    said = ldmlab.error("evaluate", f"from=runs/t/{name}")
    assert "metrics.features: the autoencoder was trained to please this very network" in said
    if name == "vae-f4":
        options = [*TINY_LDM, "study=t", "name=other", "autoencoder_from=runs/t/vae-f4"]
        assert "trained to please" in ldmlab.error("train-ldm", *options)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("metrics/features=inception", "weights of Inception-v3"),
        ("metrics.features=inception", "metrics/features=inception"),
        ("metrics.distances=[kid,fod]", "there is no fod"),
        ("metrics.distances=[prdc]", "kid or fd must be among them"),
        ("metrics.reference_samples=some", "all, null or a number"),
        ("metrics.reference=absent.npz", "no such file"),
        ("metrics.lpips=resnet", "alex, vgg, squeeze"),
        ("metrics.speed_repeats=-1", "metrics.speed_repeats"),
    ],
)
def test_a_metric_that_is_not_to_be_had_ends_in_one_line(copy_of_trained, ldmlab, option, said, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(ldmlab.folder))
    before = summary_of(copy_of_trained / "ldm-f4")
    assert said in ldmlab.error("evaluate", "from=runs/t/ldm-f4", option)
    assert summary_of(copy_of_trained / "ldm-f4") == before


def test_a_folder_of_images_is_scored_as_the_run_that_drew_them(copy_of_trained, ldmlab):
    """The very images that the run measured, read back from PNGs, have the very numbers."""
    run = copy_of_trained / "ldm-f4"
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", "metrics.samples=12") == 0
    metrics = summary_of(run)["metrics"]
    data = ["data.image_size=16", "data.train_images=64", "data.val_images=32", "metrics.features.input_size=32"]
    # the labels of the measured images are those of the reference
    labels = labels_of_reference(12)
    arguments = [f"label=[{','.join(map(str, labels))}]", "n=12", "output=drawn", "batch_size=4"]
    assert ldmlab("sample", "from=runs/t/ldm-f4", *arguments) == 0
    assert ldmlab("score", "images=drawn", *data) == 0
    scored = json.loads((ldmlab.folder / "drawn.scores.json").read_text())["metrics"]
    for name in ("kid", "fd", "sfd", "recall_k3"):
        value = metrics[f"val/{name}_lite0_32@euler2"]["value"]
        assert scored[f"val/{name}_lite0_32@images"]["value"] == pytest.approx(value, rel=1e-4, abs=1e-6)
        real = metrics[f"val/{name}_lite0_32@real"]["value"]
        assert scored[f"val/{name}_lite0_32@real"]["value"] == pytest.approx(real, rel=1e-9)
    images = np.stack([np.array(Image.open(path)) for path in sorted((ldmlab.folder / "drawn").glob("0*.png"))])
    assert ldmlab("sample", "from=runs/t/ldm-f4", *arguments, "output=drawn.npz") == 0
    one_file = np.load(ldmlab.folder / "drawn.npz")
    assert np.array_equal(one_file["arr_0"], images)
    assert one_file["arr_1"].tolist() == labels
    assert json.loads(str(one_file["manifest"]))["sampler"]["steps"] == 2
    assert ldmlab("score", "images=drawn.npz", "output=again.json", *data) == 0
    again = json.loads((ldmlab.folder / "again.json").read_text())["metrics"]
    assert again["val/fd_lite0_32@images"]["value"] == scored["val/fd_lite0_32@images"]["value"]


def labels_of_reference(count):
    """The labels of the images that runs on tiny shapes are compared with."""
    data = Shapes(image_size=16, train_images=64, val_images=32)
    return data.split("val").__getitems__(random_subset(32, 32, 0)[:count])["label"].tolist()


def test_images_that_cannot_be_scored_end_in_one_line(ldmlab):
    folder = ldmlab.folder / "drawn"
    assert "neither a folder" in ldmlab.error("score", "images=drawn")
    folder.mkdir()
    assert "0 in drawn" in ldmlab.error("score", "images=drawn")
    for i in range(8):
        Image.new("RGB", (24, 24)).save(folder / f"{i}.png")
    assert "24 x 24 pixels, the data 16 x 16" in ldmlab.error("score", "images=drawn", "data.image_size=16")
    (folder / "0.png").write_text("no image")
    assert "0.png cannot be read" in ldmlab.error("score", "images=drawn", "data.image_size=24")
    (ldmlab.folder / "cut.npz").write_bytes(b"PK")
    assert "no readable .npz" in ldmlab.error("score", "images=cut.npz")
    np.savez(ldmlab.folder / "other.npz", x=np.zeros(3))
    assert "there is no arr_0" in ldmlab.error("score", "images=other.npz")


@pytest.mark.parametrize("setting", ["metrics.samples=null", "metrics.seed=null"])
def test_what_a_reference_needs_may_not_be_null(ldmlab, setting):
    assert setting.split("=")[0] in ldmlab.error("reference", setting)


def test_reference_makes_what_runs_find_and_writes_what_others_read(copy_of_trained, ldmlab):
    data = ["data.image_size=16", "data.train_images=64", "data.val_images=32", "metrics.features.input_size=32"]
    arguments = [*data, "cache_dir=cache", "metrics.reference_samples=all", "output=shapes.npz"]
    assert ldmlab("reference", *arguments) == 0
    assert "shapes/val, 32 images, lite0_32" in ldmlab.said.err
    assert "floor: val/kid_lite0_32@real" in ldmlab.said.err
    kept = [json.loads(path.read_text()) for path in (ldmlab.folder / "cache").glob("reference/*/reference.json")]
    assert {(one["split"], one["samples"], one["extractor"]) for one in kept} == {
        ("val", 32, "lite0_32"),
        ("train", 32, "lite0_32"),
    }
    assert set(np.load(ldmlab.folder / "shapes.npz")) == {"mu", "sigma", "mu_s", "sigma_s", "manifest"}
    # the same distance from the file as from the data
    whole = ["metrics.reference_samples=all", "cache_dir=cache"]
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", *whole) == 0
    assert ldmlab("evaluate", "from=runs/t/ldm-f4", "metrics.reference=shapes.npz") == 0
    assert "made with extractor lite0_32, this run has lite0_64" in ldmlab.error(
        "evaluate", "from=runs/t/ldm-f4", "metrics.reference=shapes.npz", "metrics.features.input_size=64"
    )
    metrics = summary_of(copy_of_trained / "ldm-f4")["metrics"]
    from_file = metrics["shapes/fd_lite0_32@euler2"]
    assert from_file["value"] == pytest.approx(metrics["val/fd_lite0_32@euler2-n12-seed0-refall"]["value"], rel=1e-9)
    assert from_file["manifest"]["reference_samples"] == 32


def walk(tree):
    """Every dictionary in nested containers."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from walk(child)


def test_an_offline_wandb_run_holds_history_and_pictures(copy_of_trained, ldmlab):
    options = [option for option in TINY_LDM if option != "logger=files"]
    arguments = ["study=w", "name=w", "autoencoder_from=runs/t/vae-f4", *options]
    assert ldmlab("train-ldm", *arguments) == 0
    folder = ldmlab.folder / "runs" / "w" / "w" / "wandb"
    (offline,) = folder.glob("offline-run-*")
    assert list(offline.glob("*.wandb"))
    # beside the study's other runs, for `wandb leet`
    assert (ldmlab.folder / "runs" / "w" / "wandb" / offline.name).resolve() == offline.resolve()
    assert list(offline.glob("files/media/images/final*.png"))
    assert list(offline.glob("files/media/images/samples*.png"))
    # what wandb's own reader finds there is what `wandb sync` sends
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(offline)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = {record["type"] for record in records}
    assert {"header", "run", "history", "summary", "files", "exit"} <= kinds
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    assert run["config"]["update"]["downsampling"]["factor"] == 4
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    found = {key for item in history for key in item}
    assert {"train/loss", "cost/images", "cost/cpu_seconds", "val/kid_lite0_32@euler2", "trainer/global_step"} <= found
    media = {file["path"] for record in records if record["type"] == "files" for file in record["files"]["files"]}
    assert any(path.startswith("media/images/final") for path in media)
    assert any(path.startswith("media/table/measurements") for path in media)

    import wandb

    assert wandb.run is None  # finished: the next run of this process is its own
