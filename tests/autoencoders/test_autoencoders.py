import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldmlab.autoencoders.base import DiagonalGaussian
from ldmlab.autoencoders.convolutional import SmallAutoencoder
from ldmlab.autoencoders.identity import IdentityAutoencoder
from ldmlab.autoencoders.regularizers import KL

FACTORS = {2: (1,), 4: (1, 2), 8: (1, 2, 4)}


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size", [32, 48])
def test_latents_are_smaller_by_the_factor_and_images_come_back_in_size(factor, size):
    autoencoder = SmallAutoencoder(factor, 5, KL(1e-4), channels=16, channel_multipliers=FACTORS[factor])
    posterior = autoencoder.encode(torch.randn(2, 3, size, size))
    assert posterior.mean.shape == posterior.std.shape == (2, 5, size // factor, size // factor)
    assert autoencoder.decode(posterior.mean).shape == (2, 3, size, size)


def test_more_halvings_than_the_factor_allows_are_refused():
    with pytest.raises(ValueError, match="levels"):
        SmallAutoencoder(2, 4, KL(1e-4), channel_multipliers=(1, 2, 4))


def test_kl_equals_that_of_torch_distributions():
    mean, std = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4) + 0.1
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0))
    torch.testing.assert_close(DiagonalGaussian(mean, std).kl(), expected)


def test_samples_have_the_posterior_s_mean_and_deviation():
    draws = torch.stack(
        [DiagonalGaussian(torch.full((1, 1, 8, 8), 2.0), torch.full((1, 1, 8, 8), 0.5)).sample() for _ in range(300)]
    )
    assert draws.mean().item() == pytest.approx(2.0, abs=0.02)
    assert draws.std().item() == pytest.approx(0.5, abs=0.02)


def test_the_identity_returns_the_image_without_uncertainty():
    images = torch.randn(2, 3, 8, 8)
    posterior = IdentityAutoencoder().encode(images)
    assert torch.equal(IdentityAutoencoder().decode(posterior.sample()), images)


def test_normalised_latents_of_other_images_have_mean_zero_and_deviation_one():
    autoencoder = SmallAutoencoder(4, 3, KL(1e-4), channels=16)
    batches = [torch.randn(64, 3, 16, 16) * 0.5 + 0.3 for _ in range(8)]
    autoencoder.measure_statistics(batches[:6])
    held_out = torch.cat([autoencoder.normalize(autoencoder.encode(batch).sample()) for batch in batches[6:]])
    assert held_out.mean((0, 2, 3)).abs().max() < 0.05
    assert (held_out.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_statistics_do_not_depend_on_how_images_are_batched():
    autoencoder, images = IdentityAutoencoder(), torch.rand(60, 3, 8, 8)
    autoencoder.measure_statistics(images.split(7))
    torch.testing.assert_close(autoencoder.latent_mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(autoencoder.latent_std, images.std((0, 2, 3), correction=0))
    low, high = autoencoder.normalized_range()
    torch.testing.assert_close(autoencoder.denormalize(low).flatten(), images.amin((0, 2, 3)))
    torch.testing.assert_close(autoencoder.denormalize(high).flatten(), images.amax((0, 2, 3)))


def test_normalising_and_back_is_the_identity():
    autoencoder = SmallAutoencoder(4, 3, KL(1e-4), channels=16)
    autoencoder.measure_statistics([torch.randn(8, 3, 16, 16)])
    latents = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(autoencoder.denormalize(autoencoder.normalize(latents)), latents)


def test_the_statistics_are_saved_with_the_weights():
    assert {"latent_mean", "latent_std", "latent_min", "latent_max"} <= set(
        SmallAutoencoder(4, 3, KL(1e-4)).state_dict()
    )


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        IdentityAutoencoder().measure_statistics([])
