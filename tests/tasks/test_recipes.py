"""The recipes of the latent diffusion paper, which a test cannot train, planned and compared with what it reports."""

import json
import re
import shlex

import pytest
from tiny import TINY_COMMON, TINY_DATA

from ldmlab.hydra_errors import find_folder

pytestmark = pytest.mark.slow

RECIPES = sorted(path.stem for path in find_folder("experiments").glob("*.yaml") if "- ldm_paper" in path.read_text())


@pytest.fixture
def diffusion(ldmlab):
    """What a V100 takes for the diffusion model of a recipe, job after job."""

    def planned(*arguments):
        wish = ["plan.stage=diffusion", "plan.here=false", "plan.output=plan.json", "plan.devices=2"]
        assert ldmlab("plan", *arguments, *wish) == 0, ldmlab.said.err
        records = json.loads((ldmlab.folder / "plan.json").read_text())
        return next(record for record in records if record["device"] == "v100_32gb")

    return planned


def test_there_are_recipes_for_every_task():
    assert len(RECIPES) == 13


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [
        # tables 12 and 15
        ("celeba_hq_ldm4", 274),
        ("ffhq_ldm4", 274),
        ("lsun_bedrooms_ldm4", 274),
        ("lsun_churches_ldm8", 294),
        ("text_to_image_ldm8", 1450),
        ("layout_ldm8", 345),
        ("imagenet_ldm4", 395),
        ("semantic_ldm8", 215),
        ("inpainting_ldm4", 215),
    ],
)
def test_models_are_as_large_as_the_papers(diffusion, recipe, millions):
    assert diffusion(f"experiment={recipe}")["footprint"]["parameters"] / 1e6 == pytest.approx(millions, rel=0.1)


@pytest.mark.parametrize(("factor", "millions"), [(1, 396), (2, 391), (4, 391), (8, 395), (16, 395), (32, 395)])
def test_so_are_those_of_the_sweep_over_factors(diffusion, factor, millions):
    found = diffusion("experiment=imagenet_factors", f"downsampling=f{factor}")
    assert found["footprint"]["parameters"] / 1e6 == pytest.approx(millions, rel=0.02)  # table 13


@pytest.mark.parametrize(
    ("recipe", "steps", "days"),
    [
        # V100-days of table 18
        ("celeba_hq_ldm4", 410_000, 14.4),
        ("ffhq_ldm4", 635_000, 26),
        ("lsun_bedrooms_ldm4", 1_900_000, 60),
        ("lsun_churches_ldm8", 410_000, 18),
        ("imagenet_ldm8", 2_900_000, 79),
        ("imagenet_ldm4", 178_000, 271),
    ],
)
def test_training_takes_what_the_paper_says_within_a_factor_of_two(diffusion, recipe, steps, days):
    found = diffusion(f"experiment={recipe}", f"budget.steps={steps}")["device_hours"] / 24
    assert days / 2 < found < 2 * days


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_a_twin_for_a_laptop(diffusion, recipe):
    """The one that it says itself."""
    text = (find_folder("experiments") / f"{recipe}.yaml").read_text()
    command = re.search(r"ldmlab train-ldm ('experiment=\[.*)", text)[1].replace("f1,f2,f4,f8", "f8")
    small = diffusion(*shlex.split(command))
    assert small["footprint"]["parameters"] < 10e6
    assert small["footprint"]["activations"] < 10e6


def test_a_twin_runs(ldmlab):
    wish = [*TINY_DATA, *TINY_COMMON, "denoiser.channels=16", "denoiser.head_channels=8", "sampler.steps=2"]
    wish += ["budget.steps=20", "batch_size=4", "autoencoder.codes=16", "metrics.reference_samples=null"]
    assert ldmlab("train-ldm", "experiment=[semantic_ldm8,laptop]", *wish, "study=t", "name=x") == 0, ldmlab.said.err
    summary = json.loads((ldmlab.folder / "runs/t/x/summary.json").read_text())
    assert "val/oracle_semantic_iou@ddim2" in summary["metrics"]
