import json

import pytest
from PIL import Image
from tiny import TINY_LDM

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
    assert list(offline.glob("files/media/images/final*.png"))
    assert list(offline.glob("files/media/images/samples*.png"))
    import wandb

    assert wandb.run is None  # finished: the next run of this process is its own
