"""Ways to sample that need no training: from an image, within a mask, between two noises or conditions."""

import pytest
import torch
from torch import nn

from ldmlab.autoencoders.identity import IdentityAutoencoder
from ldmlab.conditioners.base import Conditioners
from ldmlab.conditioners.class_label import ClassLabel
from ldmlab.denoisers.unet import UNet
from ldmlab.diffusion.grids import grid_named
from ldmlab.diffusion.guidance import Autoguidance, ClassifierFree, Composition, NoGuidance
from ldmlab.diffusion.predictions import PREDICTIONS
from ldmlab.diffusion.samplers import DDIM, DDPM, PLMS, DPMpp2M, DPMpp2MSDE, Euler, Heun, PerSampleNoise, UniPC
from ldmlab.diffusion.schedules import Cosine, RectifiedFlow
from ldmlab.diffusion.times import LogitNormal
from ldmlab.diffusion.weightings import Uniform
from ldmlab.modules.model import ConditionalDenoiser, LatentDiffusion, Objective
from ldmlab.modules.sampling_modes import Below, Blend, Start, rows_of
from ldmlab.types import DataInfo, LatentInfo

DATA = DataInfo("pets", 16, "0", class_names=("cat", "dog", "fish"))
PATHS = {"flow": RectifiedFlow(), "chain": Cosine()}
SAMPLERS = [Euler(4), Heun(4), DDIM(4), DDIM(4, eta=1.0), DDPM(4), PLMS(4), DPMpp2M(4), DPMpp2MSDE(4), UniPC(4)]


def model(path="flow", told=("class",)):
    torch.manual_seed(0)
    parts = {name: ClassLabel(DATA, LatentInfo(1, 3), width=8) for name in told}
    conditioner = Conditioners(parts)
    for part in parts.values():
        nn.init.normal_(part.embedding.weight)
    denoiser = UNet(3, conditioner.vector_width, channels=16, head_channels=8)
    for parameter in denoiser.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    objective = Objective(PATHS[path], PREDICTIONS["v"], LogitNormal(), Uniform())
    return LatentDiffusion(IdentityAutoencoder(), ConditionalDenoiser(denoiser, conditioner), objective).eval()


def images(count=2):
    torch.manual_seed(1)
    return ((torch.rand(count, 3, 16, 16) * 255).round() / 127.5 - 1).clamp(-1, 1)


CAT = {"label": torch.tensor([0, 0])}


def sample(diffusion, sampler=None, conditions=CAT, seeds=(1, 2), guidance=None, **modes):
    return diffusion.sample(conditions, seeds, 16, sampler or Euler(4), guidance or NoGuidance(), **modes)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_what_is_not_masked_stays_as_it_is(sampler, path):
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    mask[0, :, :8], mask[1, :, 3:9, 4:12] = True, True
    drawn = sample(model(path), sampler, start=Start(images(), 1.0, mask))
    inside = mask.expand(2, 3, 16, 16)
    assert torch.equal(drawn.images[~inside], images()[~inside])
    assert not torch.equal(drawn.images[inside], images()[inside])
    # the model itself ends there, not only what is pasted over it
    torch.testing.assert_close(drawn.latents[~inside], images()[~inside], atol=2e-3, rtol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_a_weak_change_is_small_and_a_strong_one_is_not(sampler, path):
    diffusion = model(path)
    changes = [
        (sample(diffusion, sampler, start=Start(images(), strength)).images - images()).abs().mean().item()
        for strength in (0.02, 0.3, 0.95)
    ]
    assert changes[0] < 0.1
    assert changes[0] < changes[1] < changes[2]


def test_at_full_strength_nothing_of_the_image_is_left():
    diffusion = model()
    assert torch.equal(sample(diffusion, start=Start(images(), 1.0)).images, sample(diffusion).images)


def test_the_number_of_steps_is_that_of_the_sampler_at_any_strength():
    assert sample(model(), start=Start(images(), 0.3)).evaluations == 4


def test_times_begin_at_the_strength_and_end_at_the_data():
    times = Below(grid_named("auto", RectifiedFlow()), 0.6)(4, RectifiedFlow())
    assert times[0].item() == pytest.approx(0.6)
    assert times[-1].item() == 0
    assert (times.diff() < 0).all()


def test_the_noise_that_images_enter_with_has_the_variance_of_the_path():
    start, schedule = Start(torch.zeros(2, 3, 64, 64), 0.5), Cosine()
    noise = torch.randn(2, 3, 64, 64)
    sampler, entered = start.enter(DDIM(4), torch.zeros(2, 3, 64, 64), noise, schedule)
    first = sampler.points(schedule)[0]
    assert first.t == pytest.approx(0.5)
    assert entered.std().item() == pytest.approx(first.sigma / (first.alpha**2 + first.sigma**2) ** 0.5, rel=0.02)


def test_a_way_between_noises_has_the_two_at_its_ends_and_keeps_their_length():
    blank = torch.zeros(5, 3, 32, 32)
    way = Blend(torch.linspace(0, 1, 5), seeds=(3, 9)).noise(blank)
    first, last = PerSampleNoise([3, 9])(blank[:2])
    torch.testing.assert_close(way[0], first)
    torch.testing.assert_close(way[-1], last)
    lengths = way.flatten(1).norm(dim=1)
    assert (lengths / first.norm() - 1).abs().max() < 0.05
    assert (way[2] - first).norm().item() == pytest.approx((way[2] - last).norm().item(), rel=0.05)


def test_a_part_of_a_way_is_the_same_as_in_the_whole():
    diffusion = model()
    cats, dogs = ({"label": torch.full((4,), label)} for label in (0, 1))
    for way in (Blend(torch.linspace(0, 1, 4), seeds=(3, 9)), Blend(torch.linspace(0, 1, 4), conditions=dogs)):
        whole = sample(diffusion, conditions=cats, seeds=(5, 5, 5, 5), blend=way).images
        part = sample(diffusion, conditions=rows_of(cats, 1, 3), seeds=(5, 5), blend=way.rows(1, 3)).images
        torch.testing.assert_close(part, whole[1:3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [NoGuidance(), ClassifierFree(2.0), Composition({"class": 2.0}), "autoguidance"])
def test_a_way_between_conditions_has_the_two_at_its_ends(guidance):
    diffusion = model()
    if guidance == "autoguidance":
        guidance = Autoguidance(2.0, guide=model())
        nn.init.normal_(guidance.guide.network.conditioner.parts["class"].embedding.weight)
    cats, dogs = ({"label": torch.full((3,), label)} for label in (0, 1))
    way = sample(diffusion, conditions=cats, seeds=(5, 5, 5), guidance=guidance,
                 blend=Blend(torch.tensor([0.0, 0.5, 1.0]), conditions=dogs)).images  # fmt: skip
    cat = sample(diffusion, conditions=cats, seeds=(5, 5, 5), guidance=guidance).images[0]
    dog = sample(diffusion, conditions=dogs, seeds=(5, 5, 5), guidance=guidance).images[0]
    torch.testing.assert_close(way[0], cat, atol=1e-5, rtol=0)
    torch.testing.assert_close(way[2], dog, atol=1e-5, rtol=0)
    assert (cat - dog).abs().max() > 1e-3
    assert min((way[1] - end).abs().max() for end in (cat, dog)) > 1e-4


def test_all_conditions_composed_with_scale_one_each_of_a_single_one_are_the_conditional_model():
    diffusion = model()
    plain = sample(diffusion).images
    torch.testing.assert_close(sample(diffusion, guidance=Composition({"class": 1.0})).images, plain, atol=1e-5, rtol=0)
    guided = sample(diffusion, guidance=ClassifierFree(3.0)).images
    composed = sample(diffusion, guidance=Composition({"class": 3.0})).images
    torch.testing.assert_close(composed, guided, atol=1e-5, rtol=0)


def test_composing_costs_one_evaluation_for_each_condition_and_one_more():
    diffusion = model(told=("class", "other"))
    drawn = sample(diffusion, guidance=Composition({"class": 2.0, "other": 3.0}))
    assert drawn.evaluations == 4 * 3
    alone = sample(diffusion, guidance=Composition({"class": 2.0}))
    assert alone.evaluations == 4 * 2
    assert not torch.equal(drawn.images, alone.images)


def test_a_condition_that_is_not_composed_is_heard_as_it_is():
    diffusion = model(told=("class", "other"))
    off = sample(diffusion, guidance=Composition({"class": 0.0})).images
    diffusion.network.conditioner.parts["other"].embedding.weight.data.mul_(2)
    assert not torch.equal(off, sample(diffusion, guidance=Composition({"class": 0.0})).images)


def test_larger_images_than_in_training_can_be_drawn():
    drawn = model().sample(CAT, [1, 2], (16, 24), Euler(1), NoGuidance())
    assert drawn.images.shape == (2, 3, 16, 24)
