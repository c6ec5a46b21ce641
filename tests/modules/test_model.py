"""The latent diffusion model put together."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ldmlab.autoencoders.convolutional import SmallAutoencoder
from ldmlab.autoencoders.identity import IdentityAutoencoder
from ldmlab.autoencoders.regularizers import KL
from ldmlab.conditioners.base import Conditioners
from ldmlab.conditioners.class_label import ClassLabel
from ldmlab.denoisers.unet import UNet
from ldmlab.diffusion.guidance import Autoguidance, ClassifierFree, NoGuidance
from ldmlab.diffusion.likelihood import step_term
from ldmlab.diffusion.predictions import PREDICTIONS, Preconditioned
from ldmlab.diffusion.samplers import DDIM, DDPM, Heun
from ldmlab.diffusion.schedules import EDM, Cosine, Linear, RectifiedFlow, add_noise
from ldmlab.diffusion.times import Discrete, ImportanceSampled, LogitNormal, LogNormal
from ldmlab.diffusion.weightings import EDM as EDMWeighting
from ldmlab.diffusion.weightings import MinSNR, Uniform
from ldmlab.modules.loss import DiffusionLoss
from ldmlab.modules.model import ConditionalDenoiser, LatentDiffusion, Objective
from ldmlab.types import Conditioning, DataInfo, LatentInfo

DATA = DataInfo("pets", 16, "0", class_names=("cat", "dog", "fish"))
FLOW = Objective(RectifiedFlow(), PREDICTIONS["velocity"], LogitNormal(), Uniform())


def model(objective=FLOW, autoencoder=None, told=("class",)):
    autoencoder = autoencoder or IdentityAutoencoder()
    channels = autoencoder.latent_channels
    latents = LatentInfo(autoencoder.downsampling_factor, channels)
    told = Conditioners({name: ClassLabel(DATA, latents) for name in told})
    outputs = 2 * channels if objective.learned_variance else channels
    denoiser = UNet(channels, told.vector_width, out_channels=outputs, channels=16, head_channels=8)
    for parameter in denoiser.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return LatentDiffusion(autoencoder, ConditionalDenoiser(denoiser, told), objective)


def loss(diffusion, data, drop_probability=0.1):
    """The loss of each sample of a batch."""
    return DiffusionLoss(diffusion.objective, drop_probability)(diffusion, data).minimised


def batch(n=4):
    return {"image": torch.rand(n, 3, 16, 16) * 2 - 1, "label": torch.arange(n) % 3}


class Oracle(nn.Module):
    """Knows the one image that all data consists of, and outputs the exact target."""

    def __init__(self, x0, objective):
        super().__init__()
        self.x0, self.objective = nn.Parameter(x0), objective

    def forward(self, xt, t, conditioning):
        alpha, sigma = self.objective.schedule.coefficients(t)
        xt = xt / self.objective.prediction.input_scale(alpha, sigma)[:, None, None, None]
        noise = (xt - alpha[:, None, None, None] * self.x0) / sigma[:, None, None, None]
        return self.objective.prediction.target(self.x0.expand_as(xt), noise, alpha, sigma)


PATHS = [Linear(), Cosine(), Cosine(zero_terminal_snr=True), EDM(), RectifiedFlow()]


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(path, name) for path in PATHS for name in PREDICTIONS if name != "epsilon" or not path.ends_in_noise],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_exact_network_has_no_loss_and_samples_its_image(schedule, prediction):
    times = LogNormal() if isinstance(schedule, EDM) else Discrete()
    objective = Objective(schedule, PREDICTIONS[prediction], times, Uniform())
    x0 = torch.rand(1, 3, 16, 16) - 0.5
    diffusion = model(objective)
    diffusion.network.denoiser = Oracle(x0, objective)
    images = {"image": x0.repeat(4, 1, 1, 1), "label": torch.zeros(4, dtype=torch.long)}
    assert loss(diffusion, images).max() < 1e-5
    samples = diffusion.sample({"label": torch.tensor([0])}, [1], 16, DDIM(5), NoGuidance())
    torch.testing.assert_close(samples.images, x0, rtol=1e-3, atol=1e-3)


def test_the_stated_share_of_samples_is_not_told_its_class():
    diffusion = model()
    told = []
    embedding = diffusion.network.conditioner.parts["class"].embedding
    embedding.register_forward_pre_hook(lambda module, arguments: told.append(arguments[0]))
    for _ in range(40):
        loss(diffusion, batch(50), 0.25)
    dropped = (torch.cat(told) == DATA.num_classes).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.04)


def test_sampling_never_drops_a_condition():
    diffusion = model()
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
    autoencoder = SmallAutoencoder(4, 5, KL(1e-4), channels=16)
    autoencoder.measure_statistics([batch(8)["image"]])
    diffusion = model(autoencoder=autoencoder)
    images = batch()
    with torch.no_grad():
        posterior = autoencoder.encode(images["image"])
    cached = {"latent_mean": posterior.mean, "latent_std": posterior.std, "label": images["label"]}
    losses = []
    for data in (images, cached):
        torch.manual_seed(3)
        losses.append(loss(diffusion, data))
    torch.testing.assert_close(losses[0], losses[1])


def test_latents_are_drawn_anew_from_cached_moments():
    diffusion = model()
    cached = {"latent_mean": torch.zeros(1, 3, 4, 4), "latent_std": torch.ones(1, 3, 4, 4)}
    assert not torch.equal(diffusion.draw_latents(cached), diffusion.draw_latents(cached))


def test_the_autoencoder_is_frozen_and_stays_in_evaluation_mode():
    diffusion = model(autoencoder=SmallAutoencoder(4, 3, KL(1e-4), channels=16)).train()
    assert not diffusion.autoencoder.training
    loss(diffusion, batch()).sum().backward()
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


def test_the_weighting_multiplies_each_sample_s_squared_error():
    torch.manual_seed(1)
    plain = model(Objective(Cosine(), PREDICTIONS["v"], Discrete(), Uniform()))
    weighted = LatentDiffusion(
        plain.autoencoder, plain.network, Objective(Cosine(), PREDICTIONS["v"], Discrete(), MinSNR())
    )
    images = batch()
    losses = []
    for diffusion in (plain, weighted):
        torch.manual_seed(2)
        losses.append(loss(diffusion, images, 0))
    torch.manual_seed(2)
    plain.draw_latents(images)
    t = Discrete()(4, Cosine(), torch.device("cpu"))
    torch.testing.assert_close(losses[1] / losses[0], MinSNR()(t, Cosine(), PREDICTIONS["v"]))


IMPROVED = Objective(Cosine(), PREDICTIONS["epsilon"], Discrete(), Uniform(), learned_variance=True)


def test_the_variance_learns_from_the_bound_alone_and_leaves_the_mean_to_the_simple_loss():
    torch.manual_seed(0)
    diffusion = model(IMPROVED)
    out = diffusion.network.denoiser.conv_out

    def gradient(bound_weight):
        torch.manual_seed(3)
        diffusion.objective = replace(IMPROVED, bound_weight=bound_weight)
        diffusion.zero_grad()
        loss(diffusion, batch(), 0).mean().backward()
        return out.weight.grad[:3].clone(), out.weight.grad[3:].clone()

    (mean_without, variance_without), (mean_with, variance_with) = gradient(0.0), gradient(1e-3)
    assert variance_without.abs().max() == 0
    assert variance_with.abs().max() > 0
    torch.testing.assert_close(mean_with, mean_without)


def test_the_hybrid_loss_is_the_simple_one_and_a_thousandth_of_the_bound():
    torch.manual_seed(0)
    diffusion = model(IMPROVED)
    images = batch()

    def losses(bound_weight):
        torch.manual_seed(3)
        diffusion.objective = replace(IMPROVED, bound_weight=bound_weight)
        return loss(diffusion, images, 0)

    torch.manual_seed(3)
    x0 = diffusion.draw_latents(images)
    t = Discrete()(4, Cosine(), x0.device)
    xt = add_noise(Cosine(), x0, torch.randn_like(x0), t)
    told = diffusion.network.conditioner(images)
    prediction = diffusion.denoise(diffusion.network, xt, t, told)
    term = step_term(x0, xt, prediction, t, Cosine(), 1000, "learned", diffusion.bins())
    torch.testing.assert_close(losses(1e-3) - losses(0.0), term, rtol=1e-3, atol=1e-5)


def test_ddpm_samples_with_the_variance_that_was_learned():
    diffusion = model(IMPROVED).eval()
    images = [
        diffusion.sample({"label": torch.tensor([0])}, [1], 16, DDPM(4, variance=name), ClassifierFree(2.0)).latents
        for name in ("small", "large", "learned")
    ]
    assert all(torch.isfinite(image).all() for image in images)
    assert not torch.equal(images[2], images[0])
    assert not torch.equal(images[2], images[1])


def test_importance_sampled_times_remember_losses_in_training_only():
    objective = replace(IMPROVED, times=ImportanceSampled())
    diffusion = model(objective)
    criterion = DiffusionLoss(diffusion.objective)
    criterion.eval()(diffusion, batch())
    assert objective.times.seen.sum() == 0
    criterion.train()(diffusion, batch())
    assert objective.times.seen.sum() == 4
    assert any(name.startswith("importance") for name in criterion.state_dict())


def test_learned_uncertainty_is_trained_beside_the_network_and_is_no_part_of_it():
    diffusion = model(replace(FLOW, learned_uncertainty=True))
    criterion = DiffusionLoss(diffusion.objective)
    criterion(diffusion, batch()).minimised.mean().backward()
    assert all(parameter.grad is not None for parameter in criterion.parameters())
    assert not any("uncertainty" in name for name in diffusion.state_dict())


def test_learned_uncertainty_does_not_undo_the_weights_of_importance_sampled_times():
    torch.manual_seed(0)
    times = ImportanceSampled(steps=1000, history=1)
    times.update(torch.arange(1, 1001) / 1000, torch.linspace(1, 9, 1000))
    diffusion = model(replace(IMPROVED, times=times, learned_uncertainty=True, bound_weight=0.0))
    criterion = DiffusionLoss(diffusion.objective, 0).eval()
    images = batch()
    # at the start u = 0, and its gradient says what it is taught: the loss without those weights
    torch.manual_seed(3)
    criterion(diffusion, images).minimised.sum().backward()
    torch.manual_seed(3)
    diffusion.draw_latents(images)
    weight = times.weight(times(4, Cosine(), torch.device("cpu")))
    torch.manual_seed(3)
    unweighted = (criterion(diffusion, images).plain / weight).detach()
    torch.testing.assert_close(criterion.uncertainty.bias.grad, (weight * (1 - unweighted)).sum())


def test_cells_of_pixels_are_those_of_8_bit_images_and_latents_have_none():
    autoencoder = IdentityAutoencoder()
    autoencoder.measure_statistics([batch(32)["image"] * 0.5])
    bins = model(autoencoder=autoencoder).bins()
    values = autoencoder.normalize(torch.tensor([-1.0, 1.0, 1 / 127.5 - 1])[:, None, None, None].expand(3, 3, 1, 1))
    torch.testing.assert_close(torch.cat([bins.lowest, bins.highest]), values[:2])
    torch.testing.assert_close(2 * bins.half_width, values[2:] - values[:1])
    assert model(autoencoder=SmallAutoencoder(4, 3, KL(1e-4), channels=16)).bins() is None


def test_a_guide_is_another_model_under_the_same_conditions():
    torch.manual_seed(0)
    strong, weak = model().eval(), model().eval()
    conditions = {"label": torch.tensor([0, 2])}

    def images(guidance):
        return strong.sample(conditions, [1, 2], 16, DDIM(3), guidance)

    alone, itself = images(NoGuidance()), images(Autoguidance(3.0, guide=strong))
    torch.testing.assert_close(itself.images, alone.images, rtol=1e-3, atol=1e-4)
    guided = images(Autoguidance(3.0, guide=weak))
    assert guided.evaluations == 6
    assert not torch.allclose(guided.images, alone.images, atol=1e-2)


def test_one_batch_or_two_evaluations_give_the_same_picture():
    diffusion = model().eval()
    one, two = (
        diffusion.sample({"label": torch.tensor([0, 1])}, [1, 2], 16, DDIM(3), ClassifierFree(3.0, batched=batched))
        for batched in (True, False)
    )
    torch.testing.assert_close(one.images, two.images, rtol=1e-4, atol=1e-5)
    assert one.evaluations == two.evaluations == 6


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"schedule": RectifiedFlow(), "prediction": "epsilon"}, "use v or velocity"),
        ({"schedule": Linear(zero_terminal_snr=True), "prediction": "epsilon"}, "use v or velocity"),
        ({"schedule": Linear(), "prediction": "score"}, "epsilon, sample, v, velocity, edm"),
        ({"schedule": RectifiedFlow(), "prediction": "v", "learned_variance": True}, "this path is none"),
        ({"schedule": Linear(steps=10), "prediction": "v"}, r"times: 1000 discrete times .*times\.steps=10 or"),
        ({"schedule": "linear", "prediction": "v"}, "schedule: a node with a _target_ is needed, not linear"),
        ({"schedule": Linear(), "prediction": None}, "prediction: a node with a _target_ is needed, not None"),
        ({"schedule": Linear(), "prediction": "v", "weighting": None}, "weighting: a node with a _target_ is needed"),
        ({"schedule": Linear(), "prediction": "v", "times": 3}, "times: a node with a _target_ is needed, not 3"),
        ({"schedule": Linear(), "prediction": "v", "learned_variance": "no"}, "learned_variance: true or false is"),
        ({"schedule": Linear(), "prediction": "v", "bound_weight": "x"}, "bound_weight: a number is needed, not x"),
        (
            {"schedule": EDM(), "prediction": Preconditioned(0.5), "weighting": EDMWeighting()},
            r"weighting\.sigma_data: 1\.0 here, 0\.5 of the prediction",
        ),
        (
            {"schedule": Linear(), "prediction": "epsilon", "learned_variance": True, "times": LogitNormal()},
            "trained at the steps of the chain",
        ),
    ],
)
def test_choices_that_do_not_fit_together_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        Objective.from_names(64, **{"times": Discrete(), "weighting": Uniform(), **choices})


def test_shift_auto_is_set_by_the_latent_s_dimension():
    objective = Objective.from_names(
        1024, schedule=RectifiedFlow("auto"), prediction="velocity", times=LogitNormal(), weighting=Uniform()
    )
    assert objective.schedule == RectifiedFlow(0.5)


def test_the_unconditional_model_needs_no_labels():
    diffusion = model(told=())
    assert loss(diffusion, {"image": batch()["image"]}).shape == (4,)
    assert diffusion.sample({}, [1, 2], 16, DDIM(1), NoGuidance()).images.shape == (2, 3, 16, 16)


def test_the_stated_shares_of_samples_miss_all_and_single_conditions():
    diffusion = model(told=("class", "other"))
    heard = {"class": [], "other": []}
    for name, rows in heard.items():
        embedding = diffusion.network.conditioner.parts[name].embedding
        embedding.register_forward_pre_hook(lambda module, arguments, rows=rows: rows.append(arguments[0]))
    for _ in range(40):
        DiffusionLoss(diffusion.objective, 0.2, 0.3)(diffusion, batch(50))
    gone = {name: torch.cat(rows) == DATA.num_classes for name, rows in heard.items()}
    assert (gone["class"] & gone["other"]).float().mean().item() == pytest.approx(0.2, abs=0.04)
    assert (gone["class"] & ~gone["other"]).float().mean().item() == pytest.approx(0.8 * 0.3 * 0.7, abs=0.04)


def test_both_conditionings_in_one_batch_are_heard_as_one_after_the_other():
    torch.manual_seed(0)
    short = Conditioning(tokens=torch.randn(2, 2, 4), token_mask=torch.tensor([[True, True], [True, False]]))
    long = Conditioning(tokens=torch.randn(2, 5, 4), token_mask=torch.ones(2, 5, dtype=torch.bool))
    network = UNet(3, token_width=4, channels=16, head_channels=8).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    x, t = torch.randn(2, 3, 16, 16), torch.rand(2)
    for one, other in ((short, long), (long, short)):
        both = network(torch.cat([x, x]), torch.cat([t, t]), one.concatenate(other))
        apart = torch.cat([network(x, t, one), network(x, t, other)])
        torch.testing.assert_close(both, apart, rtol=1e-4, atol=1e-5)
