"""The training step of stage one: gradients by hand, two optimisers under Lightning, resuming."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from ldmlab.autoencoders.adversarial import Adversary, PatchDiscriminator
from ldmlab.autoencoders.convolutional import SmallAutoencoder
from ldmlab.autoencoders.equivariance import Equivariance
from ldmlab.autoencoders.perceptual import PerceptualLoss
from ldmlab.autoencoders.regularizers import FSQ, KL, VQ
from ldmlab.modules.autoencoder import (
    AdversarialAutoencoderModule,
    AutoencoderModule,
    ReconstructionLoss,
    latent_report,
)


class Blur(PerceptualLoss):
    """Stands for a network's opinion: the squared difference of blurred images."""

    name = "blur"
    trained_against = ("blur",)

    def __init__(self):
        super().__init__(torch.nn.AvgPool2d(4), 2.0)

    def difference(self, reconstructions, images):
        return (self.network(reconstructions) - self.network(images)).square().mean()


def sgd(groups):
    return torch.optim.SGD([parameter for group in groups for parameter in group["params"]], lr=0.1)


def autoencoder(regularizer=None):
    torch.manual_seed(0)
    return SmallAutoencoder(4, 2, regularizer or FSQ(2, [5, 5]), channels=16, channel_multipliers=(1,))


def adversarial(used=1.0, optimizer=sgd, accumulate=1, clip=None, regularizer=None, **settings):
    network = autoencoder(regularizer)
    settings = {"start": 0.2, "heard_from": 0.5, "ramp": 0.0, "weight": 0.7, **settings}
    return AdversarialAutoencoderModule(
        network, optimizer, ReconstructionLoss("l1", Blur()), None,
        Adversary(PatchDiscriminator(8, 1), optimizer, **settings),
        used=lambda: used, accumulate=accumulate, clip=clip,
    )  # fmt: skip


def batches(count=8, size=4):
    torch.manual_seed(1)
    return DataLoader([{"image": torch.rand(3, 16, 16) * 2 - 1} for _ in range(count * size)], batch_size=size)


def batch():
    return next(iter(batches()))


def trainer(**settings):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


def by_hand(module, images):
    """The adaptive factor and the total loss, straight from the equations: Esser et al. 2021, eq. 7."""
    made = module.autoencoder(images)
    pixels = (made.images - images).abs().mean()
    blur = (F.avg_pool2d(made.images, 4) - F.avg_pool2d(images, 4)).square().mean()
    reconstruction = pixels + 2.0 * blur
    adversarial = -module.discriminator(made.images).mean()
    last = module.autoencoder.decoder.out.weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    factor = (norms[0] / (norms[1] + 1e-6)).clamp(0, 10)
    return factor.detach(), reconstruction + 0.7 * factor.detach() * adversarial + made.penalty


@pytest.mark.parametrize("regularizer", [FSQ(2, [5, 5]), VQ(2, 8).eval()], ids=["fsq", "vq"])
def test_the_gradient_of_the_autoencoder_is_that_of_the_sum_of_all_losses(regularizer):
    module, images = adversarial(regularizer=regularizer).eval(), batch()["image"]
    factor, loss = by_hand(module, images)
    wanted = torch.autograd.grad(loss, list(module.autoencoder.parameters()))
    made = module.gradients({"image": images})
    got = torch.autograd.grad(made.autoencoder, list(module.autoencoder.parameters()), retain_graph=True)
    assert 0 < factor < 10
    torch.testing.assert_close(made.terms["adaptive_factor"], factor)
    for ours, expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


def test_the_discriminator_learns_from_images_and_reconstructions_alone():
    module, images = adversarial().eval(), batch()["image"]
    real, fake = module.discriminator(images), module.discriminator(module.autoencoder(images).images.detach())
    loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    wanted = torch.autograd.grad(loss, list(module.discriminator.parameters()))
    module.gradients({"image": images}).discriminator.backward()
    assert all(parameter.grad is None for parameter in module.autoencoder.parameters())
    for parameter, expected in zip(module.discriminator.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_before_it_is_heard_the_discriminator_changes_nothing_for_the_autoencoder():
    images = batch()["image"]
    alone = AutoencoderModule(autoencoder(), sgd, ReconstructionLoss("l1", Blur()))
    wanted = torch.autograd.grad(alone.loss({"image": images}), list(alone.parameters()))
    for used, trained in ((0.1, False), (0.3, True)):
        module = adversarial(used)
        made = module.gradients({"image": images})
        assert (made.discriminator is not None) is trained
        got = torch.autograd.grad(made.autoencoder, list(module.autoencoder.parameters()))
        for ours, expected in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-7, rtol=1e-5)


def states(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_batch_is_one_step_of_the_trainer_and_of_both_optimisers():
    module = adversarial(optimizer=torch.optim.Adam)
    run = trainer(max_steps=5)
    before = states(module)
    run.fit(module, batches(20))
    assert run.global_step == 5
    assert run.fit_loop.epoch_loop.batch_progress.total.completed == 5
    for optimizer in run.optimizers:
        assert {int(state["step"]) for state in optimizer.state.values()} == {5}
    changed = [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("discriminator") for name in changed)
    assert any(name.startswith("autoencoder") for name in changed)


def test_accumulating_two_batches_is_one_batch_of_twice_the_size():
    whole, halves = adversarial(), adversarial(accumulate=2)
    halves.load_state_dict(whole.state_dict())
    # the adaptive factor is that of each batch: equal halves make it equal
    half = batch()["image"]
    run = trainer(max_steps=1)
    run.fit(whole, DataLoader([{"image": image} for image in torch.cat([half, half])], batch_size=8))
    run = trainer(max_steps=1)
    run.fit(halves, DataLoader([{"image": image} for image in torch.cat([half, half])], batch_size=4))
    assert run.global_step == 1
    assert run.fit_loop.epoch_loop.batch_progress.total.completed == 2
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], value, atol=1e-6, rtol=1e-4)


def test_gradients_are_clipped_network_by_network():
    free, clipped = adversarial(), adversarial(clip=1e-3)
    clipped.load_state_dict(free.state_dict())
    before = states(free)
    for module in (free, clipped):
        trainer(max_steps=1).fit(module, batches())
    for network in ("autoencoder", "discriminator"):
        moved = {
            module: sum(
                (value - before[name]).square().sum()
                for name, value in module.named_parameters()
                if name.startswith(network)
            ).sqrt()
            for module in (free, clipped)
        }
        assert moved[clipped].item() == pytest.approx(0.1 * 1e-3, rel=0.01)  # learning rate times norm
        assert moved[free] > 2 * moved[clipped]


def test_it_trains_in_mixed_precision():
    module = adversarial(optimizer=torch.optim.Adam)
    trainer(max_steps=3, precision="bf16-mixed").fit(module, batches())
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_all_that_tells_of_a_collapse_is_logged():
    module, run = adversarial(), trainer(max_steps=2)
    run.fit(module, batches())
    told = {name.removeprefix("train/") for name in run.callback_metrics}
    assert told >= {
        "loss", "l1", "blur", "logits_real", "logits_fake", "discriminator_loss", "adaptive_factor",
        "adversarial_weight", "gradient_norm_reconstruction", "gradient_norm_adversarial",
        "gradient_norm_autoencoder", "gradient_norm_discriminator", "codebook_perplexity", "codebook_usage",
    }  # fmt: skip


def test_the_kl_is_computed_in_full_precision_whatever_the_network_runs_in():
    features = torch.randn(2, 8, 4, 4) * 0.01
    with torch.autocast("cpu", torch.bfloat16):
        posterior = KL(1.0).posterior(features.bfloat16())
        assert posterior.kl().dtype == torch.float32
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(posterior.kl(), expected, atol=1e-7, rtol=1e-3)


def test_moved_latents_are_compared_with_moved_images():
    module = AutoencoderModule(autoencoder(KL(0.0)), sgd, ReconstructionLoss(), Equivariance(1.0, 0.5))
    told = batch()
    moves = [module.draw_move(told) for _ in range(20)]
    made = [module.reconstruct(told, move) for move in moves]
    assert {images.shape[-1] for images, _ in made} == {8, 12, 16}
    assert all(images.shape == reconstruction.images.shape for images, reconstruction in made)
    assert all(
        torch.equal(images, move.images(told["image"], 4)) for move, (images, _) in zip(moves, made, strict=True)
    )
    sizes = []
    module.reconstruction = lambda made, images: (sizes.append(images.shape[-1]) or made.mean(), {})
    module.log_dict = lambda terms, **options: None
    for step in range(20):
        module.training_step(told, step)
    assert set(sizes) == {8, 12, 16}
    sizes.clear()
    module.loss(told)
    assert sizes == [16]


def test_the_report_of_latents_says_how_a_code_is_used_and_no_kl():
    network = autoencoder(VQ(2, 16)).train()
    for item in batches(30):
        network(item["image"])
    report = latent_report(network.eval(), [item["image"] for item in batches(4)])
    assert 1 < report["codebook_perplexity"] <= 16
    assert 0 < report["codebook_usage"] <= 1
    assert "kl_per_channel" not in report


def test_the_report_says_whether_the_statistics_hold_for_other_images():
    network = autoencoder(KL(1.0)).eval()
    some, others = batches(150).dataset, [item["image"] for item in batches(150)]
    network.measure_statistics([torch.stack([item["image"] for item in some])])
    report = latent_report(network, others)
    assert all(abs(mean) < 0.02 for mean in report["normalized_mean_per_channel"])
    assert all(abs(std - 1) < 0.02 for std in report["normalized_std_per_channel"])
    posterior = network.encode(torch.cat(others))
    torch.testing.assert_close(torch.tensor(report["kl_per_channel"]), posterior.kl().mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(report["mean_per_channel"]), posterior.mean.mean((0, 2, 3)))

    wrong = latent_report(network, [image + 1 for image in others])
    assert max(map(abs, wrong["normalized_mean_per_channel"])) > 0.1
