import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

from ldmlab.metrics.reconstruction import feature_loss, reconstruction_quality, scales_that_fit


def pair(count=5, size=24, noise=0.1):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, size, size, generator=generator) * 1.6 - 0.8
    levels = torch.linspace(0.2, 1, count)[:, None, None, None] * noise
    return images, images + levels * torch.randn(images.shape, generator=generator)


def test_psnr_is_that_of_each_image():
    images, reconstructions = pair()
    errors = (((images - reconstructions.clamp(-1, 1)) / 2) ** 2).mean((1, 2, 3))
    got = reconstruction_quality(images, reconstructions)["recon_psnr"]
    torch.testing.assert_close(got, -10 * errors.log10())
    assert got.mean() > -10 * math.log10(errors.mean()) + 0.5  # not the PSNR of the mean error


def test_ssim_is_that_of_wang_on_images_in_zero_to_one():
    # Wang et al. 2004, eq. 13, with a Gaussian window of 11 pixels and deviation 1.5; borders are mirrored
    images, reconstructions = pair(noise=0.3)
    x, y = ((v.clamp(-1, 1).double().numpy() + 1) / 2 for v in (images, reconstructions))

    def window(v):
        return scipy.ndimage.gaussian_filter(v, 1.5, radius=5, axes=(2, 3), mode="mirror")

    mean_x, mean_y = window(x), window(y)
    var_x, var_y = window(x * x) - mean_x**2, window(y * y) - mean_y**2
    covariance = window(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    got = reconstruction_quality(images, reconstructions)["recon_ssim"]
    np.testing.assert_allclose(got.numpy(), ssim.mean((1, 2, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "scales", "name"),
    [
        (16, 2, "recon_ms_ssim_2scales"),
        (32, 2, "recon_ms_ssim_2scales"),
        (64, 3, "recon_ms_ssim_3scales"),
        (128, 4, "recon_ms_ssim_4scales"),
        (176, 5, "recon_ms_ssim"),
    ],
)
def test_ms_ssim_has_the_scales_that_the_images_have_room_for_and_says_how_many(size, scales, name):
    assert scales_that_fit(size) == scales
    images, reconstructions = pair(2, size)
    got = reconstruction_quality(images, reconstructions)
    assert [key for key in got if "ms_ssim" in key] == [name]
    if scales == 5:
        metric = MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)
        expected = metric((reconstructions.clamp(-1, 1) + 1) / 2, (images + 1) / 2)
        assert got[name].mean() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_of_one_is_a_batch():
    images, reconstructions = pair(3)
    together = reconstruction_quality(images, reconstructions)
    for row in range(3):
        alone = reconstruction_quality(images[row : row + 1], reconstructions[row : row + 1])
        for name, value in alone.items():
            assert value.shape == (1,)
            torch.testing.assert_close(value[0], together[name][row])


def test_an_exact_reconstruction_is_infinite_db_and_one():
    images, _ = pair()
    got = reconstruction_quality(images, images.clone())
    assert got["recon_psnr"].tolist() == [math.inf] * 5
    assert got["recon_ssim"].tolist() == pytest.approx([1] * 5)


def test_values_outside_the_range_count_as_clamped():
    images = torch.ones(1, 3, 16, 16) * 0.9
    low, high = (reconstruction_quality(images, images + step) for step in (0.1, 5))
    for name, value in low.items():
        torch.testing.assert_close(high[name], value)


def test_feature_loss_is_none_for_the_same_image_and_one_for_any_other():
    features = torch.randn(400, 8)
    assert feature_loss(features, features).abs().max() == 0
    assert feature_loss(features, features.roll(1, 0)).mean() == pytest.approx(1, abs=0.1)
    # the mean image as every reconstruction loses the variance once, two different images have it twice
    assert feature_loss(features, features.mean(0).expand(400, 8)).mean() == pytest.approx(0.5, abs=0.01)
