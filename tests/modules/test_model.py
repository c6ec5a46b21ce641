"""The latent diffusion model put together."""

import pytest
import torch
from torch import nn

from ldmlab.autoencoders.identity import IdentityAutoencoder
from ldmlab.autoencoders.kl import KLAutoencoder
from ldmlab.conditioners.base import NoConditioner
from ldmlab.conditioners.class_label import ClassLabel
from ldmlab.denoisers.unet import UNet
from ldmlab.diffusion.guidance import ClassifierFree, NoGuidance
from ldmlab.diffusion.predictions import PREDICTIONS
from ldmlab.diffusion.samplers import DDIM, Heun
from ldmlab.diffusion.schedules import Cosine, Linear, RectifiedFlow
from ldmlab.diffusion.times import Discrete, LogitNormal
from ldmlab.diffusion.weightings import MinSNR, Uniform
from ldmlab.modules.model import ConditionalDenoiser, LatentDiffusion, Objective
from ldmlab.types import DataInfo

DATA = DataInfo("pets", 16, "0", class_names=("cat", "dog", "fish"))
FLOW = Objective(RectifiedFlow(), PREDICTIONS["velocity"], LogitNormal(), Uniform())


def model(objective=FLOW, autoencoder=None, conditioner=ClassLabel, drop_probability=0.1):
    autoencoder = autoencoder or IdentityAutoencoder()
    told = conditioner(DATA)
    denoiser = UNet(autoencoder.latent_channels, told.vector_width, channels=16, head_channels=8)
    for parameter in denoiser.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return LatentDiffusion(autoencoder, ConditionalDenoiser(denoiser, told), objective, drop_probability)


def batch(n=4):
    return {"image": torch.rand(n, 3, 16, 16) * 2 - 1, "label": torch.arange(n) % 3}


class Oracle(nn.Module):
    """Knows the one image that all data consists of, and outputs the exact target."""

    def __init__(self, x0, objective):
        super().__init__()
        self.x0, self.objective = nn.Parameter(x0), objective

    def forward(self, xt, t, conditioning):
        alpha, sigma = self.objective.schedule.coefficients(t)
        noise = (xt - alpha[:, None, None, None] * self.x0) / sigma[:, None, None, None]
        return self.objective.prediction.target(self.x0.expand_as(xt), noise, alpha, sigma)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), RectifiedFlow()], ids=lambda s: type(s).__name__)
def test_the_exact_network_has_no_loss_and_samples_its_image(prediction, schedule):
    objective = Objective(schedule, PREDICTIONS[prediction], Discrete(), Uniform())
    x0 = torch.rand(1, 3, 16, 16) - 0.5
    diffusion = model(objective)
    diffusion.network.denoiser = Oracle(x0, objective)
    images = {"image": x0.repeat(4, 1, 1, 1), "label": torch.zeros(4, dtype=torch.long)}
    assert DiffusionLoss(diffusion)(diffusion, images).max() < 1e-5
    if prediction == "epsilon" and isinstance(schedule, RectifiedFlow):
        return  # at t = 1 there is no signal from which the noise would give x0
    samples = diffusion.sample({"label": torch.tensor([0])}, [1], 16, DDIM(5), NoGuidance())
    torch.testing.assert_close(samples.images, x0, rtol=1e-3, atol=1e-3)


def test_the_stated_share_of_samples_is_not_told_its_class():
    diffusion = model(drop_probability=0.25)
    told = []
    embedding = diffusion.network.conditioner.embedding
    embedding.register_forward_pre_hook(lambda module, arguments: told.append(arguments[0]))
    for _ in range(40):
        DiffusionLoss(diffusion)(diffusion, batch(50))
    dropped = (torch.cat(told) == DATA.num_classes).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.04)


def test_sampling_never_drops_a_condition():
    diffusion = model(drop_probability=1.0)
    a, b = (
        diffusion.sample({"label": torch.tensor([label])}, [7], 16, DDIM(2), NoGuidance()).images for label in (0, 1)
    )
    assert not torch.equal(a, b)


def test_evaluations_are_counted_for_each_image():
    diffusion = model()
    conditions = {"label": torch.tensor([0, 1])}

    def evaluations(sampler, guidance):
        return diffusion.sample(conditions, [1, 2], 16, sampler, guidance).evaluations

    assert evaluations(DDIM(4), NoGuidance()) == 4
    assert evaluations(DDIM(4), ClassifierFree(2.0)) == 8
    assert evaluations(Heun(4), ClassifierFree(2.0)) == 14
    assert evaluations(DDIM(4), ClassifierFree(2.0, start=0.3, stop=0.8)) == 6  # t = 1, .75, .5, .25


def test_an_image_depends_on_its_seed_and_condition_not_on_its_batch():
    diffusion = model().eval()
    together = diffusion.sample(
        {"label": torch.tensor([0, 1, 2])}, [5, 6, 7], 16, DDIM(3, eta=1.0), ClassifierFree(2.0)
    )
    alone = diffusion.sample({"label": torch.tensor([1])}, [6], 16, DDIM(3, eta=1.0), ClassifierFree(2.0))
    torch.testing.assert_close(together.images[1:2], alone.images, rtol=1e-4, atol=1e-5)


def test_cached_moments_train_like_the_images_they_came_from():
    autoencoder = KLAutoencoder(4, 5, channels=16)
    autoencoder.measure_statistics([batch(8)["image"]])
    diffusion = model(autoencoder=autoencoder)
    images = batch()
    with torch.no_grad():
        posterior = autoencoder.encode(images["image"])
    cached = {"latent_mean": posterior.mean, "latent_std": posterior.std, "label": images["label"]}
    losses = []
    for data in (images, cached):
        torch.manual_seed(3)
        losses.append(DiffusionLoss(diffusion)(diffusion, data))
    torch.testing.assert_close(losses[0], losses[1])


def test_latents_are_drawn_anew_from_cached_moments():
    diffusion = model()
    cached = {"latent_mean": torch.zeros(1, 3, 4, 4), "latent_std": torch.ones(1, 3, 4, 4)}
    assert not torch.equal(diffusion.draw_latents(cached), diffusion.draw_latents(cached))


def test_the_autoencoder_is_frozen_and_stays_in_evaluation_mode():
    diffusion = model(autoencoder=KLAutoencoder(4, 3, channels=16)).train()
    assert not diffusion.autoencoder.training
    DiffusionLoss(diffusion)(diffusion, batch()).sum().backward()
    assert all(parameter.grad is None for parameter in diffusion.autoencoder.parameters())
    assert diffusion.network.denoiser.conv_in.weight.grad.abs().sum() > 0


def test_clipping_keeps_the_guided_x0_in_the_range_of_the_data_and_noise_consistent():
    autoencoder = IdentityAutoencoder()
    autoencoder.measure_statistics([batch(32)["image"] * 0.5])
    low, high = autoencoder.normalized_range()
    objective = Objective(Cosine(), PREDICTIONS["epsilon"], Discrete(), Uniform(), clip_x0=True)
    diffusion = model(objective, autoencoder)
    seen = []

    def look(denoise, noise, schedule, randn_like):
        for t in (torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.9])):
            prediction = denoise(noise, t)
            alpha, sigma = (c[:, None, None, None] for c in schedule.coefficients(t))
            torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.noise, noise)
            seen.append(prediction.x0)
        return noise

    diffusion.sample({"label": torch.tensor([0, 1])}, [1, 2], 16, look, ClassifierFree(scale=5.0))
    assert len(seen) == 2
    assert all((x0 >= low).all() and (x0 <= high).all() for x0 in seen)
    assert any((x0 == high).any() for x0 in seen)  # some of it was outside


def test_epsilon_is_refused_on_a_path_that_ends_in_pure_noise():
    with pytest.raises(ValueError, match="use v or velocity"):
        Objective.from_names(RectifiedFlow(), "epsilon", Discrete(), Uniform())


def test_the_weighting_multiplies_each_sample_s_squared_error():
    torch.manual_seed(1)
    plain = model(Objective(Cosine(), PREDICTIONS["v"], Discrete(), Uniform()), drop_probability=0)
    weighted = LatentDiffusion(
        plain.autoencoder, plain.network, Objective(Cosine(), PREDICTIONS["v"], Discrete(), MinSNR()), 0
    )
    images = batch()
    losses = []
    for diffusion in (plain, weighted):
        torch.manual_seed(2)
        losses.append(DiffusionLoss(diffusion)(diffusion, images))
    torch.manual_seed(2)
    plain.draw_latents(images)
    alpha, sigma = Cosine().coefficients(Discrete()(4, torch.device("cpu")))
    torch.testing.assert_close(losses[1] / losses[0], MinSNR()(alpha, sigma, PREDICTIONS["v"]))


def test_the_unconditional_model_needs_no_labels():
    diffusion = model(conditioner=NoConditioner)
    assert DiffusionLoss(diffusion)(diffusion, {"image": batch()["image"]}).shape == (4,)
    assert diffusion.sample({}, [1, 2], 16, DDIM(1), NoGuidance()).images.shape == (2, 3, 16, 16)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="epsilon, v, velocity"):
        Objective.from_names(Linear(), "score", Discrete(), Uniform())
