import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from ldmlab.metrics.reconstruction import Reconstruction


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def pair(count=5, size=24, noise=0.1):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, size, size, generator=generator) * 1.6 - 0.8
    levels = torch.linspace(0.2, 1, count)[:, None, None, None] * noise
    return images, images + levels * torch.randn(images.shape, generator=generator)


def measure(images, reconstructions, batch=2):
    metric = Reconstruction()
    for start in range(0, len(images), batch):
        metric.update(images[start : start + batch], reconstructions[start : start + batch])
    return metric.compute()


def test_psnr_is_the_mean_over_images_and_not_that_of_the_mean_error():
    images, reconstructions = pair()
    errors = (((images - reconstructions.clamp(-1, 1)) / 2) ** 2).mean((1, 2, 3))
    got = measure(images, reconstructions)["recon_psnr"]
    assert got == pytest.approx((-10 * errors.log10()).mean().item(), rel=1e-5)
    assert got > -10 * math.log10(errors.mean()) + 0.5


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
    assert measure(images, reconstructions)["recon_ssim"] == pytest.approx(np.mean(ssim), abs=1e-5)


def test_result_does_not_depend_on_the_batches():
    images, reconstructions = pair()
    assert measure(images, reconstructions, batch=5) == pytest.approx(measure(images, reconstructions, batch=2))


def test_an_exact_reconstruction_is_infinite_db_and_one():
    images, _ = pair()
    got = measure(images, images.clone())
    assert got["recon_psnr"] == math.inf
    assert got["recon_ssim"] == pytest.approx(1)


def test_values_outside_the_range_count_as_clamped():
    images = torch.ones(1, 3, 16, 16) * 0.9
    low, high = measure(images, images + 0.1), measure(images, images + 5)
    assert high == pytest.approx(low)
