"""Conditions that are made of images: small ones, and ones with a hole."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldmlab.conditioners.degradations import degraded
from ldmlab.conditioners.inpainting import InPainting
from ldmlab.conditioners.masks import MASKS, random_mask
from ldmlab.conditioners.super_resolution import SuperResolution
from ldmlab.settings import SettingError
from ldmlab.types import DataInfo, LatentInfo

DATA, LATENTS = DataInfo("photos", 32, "0"), LatentInfo(4, 3)


def smooth(count=2, size=32):
    torch.manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)


def test_bicubic_is_pillow_s():
    image = smooth(1)
    pixels = ((image[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    wanted = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC)).astype(float)
    got = (degraded(image, 4, "bicubic", [0])[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(got - got.round()).max() < 1e-3  # values that a file can hold
    assert np.abs(got - wanted).max() <= 2


def test_blur_noise_and_compression_differ_by_seed_and_keep_the_picture():
    image = smooth(1).repeat(3, 1, 1, 1)
    small = degraded(image, 4, "blur_noise_jpeg", [1, 1, 2])
    assert small.shape == (3, 3, 8, 8)
    assert torch.equal(small[0], small[1])
    assert not torch.equal(small[0], small[2])
    exact = degraded(image, 4, "bicubic", [0, 0, 0])
    assert 0 < (small - exact).mean(1).abs().mean() < 0.15  # of brightness, as JPEG halves the size of colours


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_masks_leave_something_and_take_something(kind, size):
    masks = torch.stack([random_mask((kind,), seed, *size) for seed in range(50)])
    shares = masks.float().mean((1, 2, 3))
    assert masks.shape == (50, 1, *size)
    assert 0 < shares.min() <= shares.max() < 1
    assert len({mask.numpy().tobytes() for mask in masks}) > (3 if kind == "half" else 40)
    if kind == "half":
        assert shares.tolist() == [0.5] * 50


def test_all_kinds_of_masks_are_drawn():
    together = {random_mask(tuple(MASKS), seed, 16, 16).numpy().tobytes() for seed in range(60)}
    halves = {random_mask(("half",), seed, 16, 16).numpy().tobytes() for seed in range(60)}
    assert len(halves) == 4
    assert together & halves
    assert len(together - halves) > 20


def test_a_small_image_keeps_all_its_pixels_beside_a_smaller_latent():
    conditioner = SuperResolution(DATA, LatentInfo(8, 4), factor=2)
    small = conditioner.tell({"image": smooth()}, [0, 1])["low_resolution"]
    spatial = conditioner({"low_resolution": small}).spatial
    assert spatial.shape == (2, 3 * 16 + 1, 4, 4)
    torch.testing.assert_close(torch.nn.functional.pixel_shuffle(spatial[:, :-1], 4), small)


def test_an_image_that_is_dropped_says_that_it_is():
    conditioner = SuperResolution(DATA, LATENTS, factor=4)
    spatial = conditioner({"low_resolution": torch.ones(2, 3, 8, 8)}, torch.tensor([True, False])).spatial
    assert not spatial[0].any()
    assert spatial[1].all()


def test_what_is_hidden_does_not_reach_the_model():
    conditioner = InPainting(DATA, LATENTS)
    image = smooth()
    told = conditioner.tell({"image": image}, [3, 4])
    assert not told["masked_image"][told["mask"].expand_as(image)].any()
    kept = ~told["mask"].expand_as(image)
    assert torch.equal(told["masked_image"][kept], image[kept])


def test_a_position_says_how_much_of_it_is_to_be_painted():
    conditioner = InPainting(DATA, LATENTS)
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., :4, :2] = True
    spatial = conditioner({"mask": mask, "masked_image_latent": torch.ones(1, 3, 8, 8)}).spatial
    assert spatial[0, 3, 0].tolist() == [0.5, 0, 0, 0, 0, 0, 0, 0]


def test_only_what_is_masked_is_painted():
    conditioner = InPainting(DATA, LATENTS)
    told = conditioner.tell({"image": smooth()}, [3, 4])
    painted = torch.full((2, 3, 32, 32), 0.25)
    result = conditioner.finish(painted, told)
    inside = told["mask"].expand_as(result)
    assert (result[inside] == 0.25).all()
    assert torch.equal(result[~inside], told["masked_image"][~inside])


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: SuperResolution(DATA, LATENTS, factor=3), "factor: a divisor of the images' 32 pixels"),
        (lambda: SuperResolution(DATA, LATENTS, factor=1), "factor: a whole number above 1"),
        (lambda: SuperResolution(DATA, LATENTS, degradation="jpeg"), "degradation: one of bicubic"),
        (lambda: InPainting(DATA, LATENTS, masks=["circle"]), "masks: a list of box"),
        (lambda: InPainting(DATA, LATENTS, masks=[]), "masks: a list of box"),
    ],
)
def test_settings_that_cannot_be_are_refused(build, said):
    with pytest.raises(SettingError, match=said):
        build()
