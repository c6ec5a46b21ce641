"""Perceptual and adversarial losses, and moves, against what they are by definition."""

import pytest
import torch
import torch.nn.functional as F

from ldmlab.autoencoders.adversarial import Adversary, PatchDiscriminator, adaptive_factor, hinge_loss
from ldmlab.autoencoders.equivariance import Equivariance, Move
from ldmlab.autoencoders.perceptual import EffNetLite1
from ldmlab.modules.autoencoder import ReconstructionLoss
from ldmlab.pretrained.efficientnet_lite import VARIANTS, load_efficientnet_lite


@pytest.fixture(scope="module")
def perceptual():
    return EffNetLite1(weight=0.5, stages=3)


def images(count=2, size=32):
    return torch.rand(count, 3, size, size) * 2 - 1


def test_pixel_losses_are_means_over_values():
    a, b = images(), images()
    assert ReconstructionLoss("l1")(a, b)[0].item() == pytest.approx((a - b).abs().mean().item())
    assert ReconstructionLoss("mse")(a, b)[0].item() == pytest.approx((a - b).square().mean().item())
    with pytest.raises(ValueError, match="pixel_loss: one of l1, mse"):
        ReconstructionLoss("l2")


def test_the_perceptual_loss_is_the_mean_squared_distance_of_directions_in_each_stage(perceptual):
    a, b = images(), images()
    network = load_efficientnet_lite("lite1")
    stages = [network.stages(((x + 1) * 127.5 - 127) / 128)[:3] for x in (a, b)]
    expected = 0.0
    for x, y in zip(*stages, strict=True):
        directions = [z / z.square().sum(1, keepdim=True).sqrt() for z in (x, y)]
        expected += (directions[0] - directions[1]).square().sum(1).mean().item() / 3
    assert perceptual(a, b).item() == pytest.approx(expected, rel=1e-3)
    assert perceptual(a, a).item() == pytest.approx(0, abs=1e-6)


def test_the_perceptual_loss_is_weighed_and_named_after_its_network(perceptual):
    a, b = images(), images()
    loss, terms = ReconstructionLoss("l1", perceptual)(a, b)
    assert set(terms) == {"l1", "perceptual_lite1"}
    assert loss.item() == pytest.approx(terms["l1"].item() + 0.5 * terms["perceptual_lite1"].item())
    assert ReconstructionLoss("l1", perceptual).trained_against == (VARIANTS["lite1"][2],)
    assert ReconstructionLoss("l1").trained_against == ()


def test_only_reconstructions_get_a_gradient_and_it_makes_them_more_alike(perceptual):
    wanted = F.interpolate(images(1, 8), scale_factor=4, mode="bicubic")
    made = (wanted + 0.3 * torch.randn_like(wanted)).requires_grad_()
    before = perceptual(made, wanted).item()
    optimizer = torch.optim.Adam([made], lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        perceptual(made, wanted).backward()
        optimizer.step()
    assert perceptual(made, wanted).item() < 0.6 * before
    assert all(parameter.grad is None for parameter in perceptual.network.parameters())


def test_a_part_of_the_images_is_compared_enlarged():
    a, b = images(), images()
    part = EffNetLite1(stages=2, enlarge=2, crop=0.5)
    torch.manual_seed(3)
    value = part(a, b)
    torch.manual_seed(3)
    top, left = (int(torch.randint(17, ())) for _ in range(2))
    corner = [x[:, :, top : top + 16, left : left + 16] for x in (a, b)]
    enlarged = [F.interpolate(x, scale_factor=2, mode="bicubic") for x in corner]
    torch.testing.assert_close(value, EffNetLite1(stages=2)(*enlarged))
    places = {tuple((s.start, s.stop) for s in part._random_part(32, 48)[2:]) for _ in range(100)}
    assert {stop - start for (start, stop), _ in places} == {16}
    assert {stop - start for _, (start, stop) in places} == {24}
    assert len(places) > 50


@pytest.mark.parametrize(
    "settings", [{"stages": 0}, {"stages": 8}, {"weight": -1}, {"weight": "much"}, {"enlarge": 0}, {"crop": 0.0}]
)
def test_settings_of_the_perceptual_loss_that_cannot_be_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        EffNetLite1(**settings)


def test_the_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 0.5])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 1.5) / 3))


def test_the_adaptive_factor_is_the_quotient_of_the_norms_within_its_limit():
    assert adaptive_factor(torch.tensor(3.0), torch.tensor(1.5), 10).item() == pytest.approx(2, rel=1e-5)
    assert adaptive_factor(torch.tensor(3.0), torch.tensor(0.0), 10).item() == 10


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch_of_the_size_that_is_said(layers, patch):
    discriminator = PatchDiscriminator(8, layers)
    # the receptive field is that of the convolutions: group norm looks at the whole image
    convolutions = torch.nn.Sequential(*[layer for layer in discriminator if isinstance(layer, torch.nn.Conv2d)])
    x = torch.rand(1, 3, 160, 160, requires_grad=True)
    logits = convolutions(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = x.grad[0].abs().sum(0) > 0
    assert int(seen.any(0).sum()) == int(seen.any(1).sum()) == patch


def test_the_logits_of_an_image_do_not_depend_on_the_others():
    discriminator, x = PatchDiscriminator(8, 2), images(3)
    torch.testing.assert_close(discriminator(x)[:1], discriminator(x[:1]))


def adversary(**settings):
    return Adversary(PatchDiscriminator(8, 1), torch.optim.Adam, **settings)


def test_the_discriminator_is_trained_before_it_is_heard_and_its_weight_rises():
    told = adversary(weight=0.8, start=0.2, heard_from=0.4, ramp=0.2)
    assert [told.phase(used) for used in (0, 0.2, 0.4, 1)] == [
        "reconstruction", "discriminator", "adversarial", "adversarial"
    ]  # fmt: skip
    weights = [told.weight_at(used) for used in (0, 0.39, 0.4, 0.5, 0.6, 1)]
    assert weights == pytest.approx([0, 0, 0, 0.4, 0.8, 0.8])
    assert adversary(heard_from=0.7, ramp=0.0).weight_at(0.7) == 0.2


@pytest.mark.parametrize(
    "settings", [{"start": 2.0}, {"heard_from": 0.1}, {"weight": -1.0}, {"ramp": "slow"}, {"largest_factor": -1.0}]
)
def test_settings_of_the_adversary_that_cannot_be_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        adversary(**settings)


def test_moves_do_the_same_to_latents_and_images():
    x = images(1, 32)
    latents = F.avg_pool2d(x, 4)  # an encoder that is equivariant by itself
    for turns in range(4):
        move = Move(turns, (8, 8))
        torch.testing.assert_close(F.avg_pool2d(move.images(x, 4), 4), move.latents(latents))
    assert torch.equal(Move(1, (8, 8)).latents(latents), torch.rot90(latents, 1, (2, 3)))
    assert Move(0, (5, 5)).images(x, 4).shape[2:] == (20, 20)
    assert Move(0, (5, 5)).latents(latents).shape[2:] == (5, 5)


def test_moves_are_drawn_as_often_and_as_small_as_is_said():
    drawn = [Equivariance(probability=0.25, smallest_scale=0.5).draw(16, 8) for _ in range(800)]
    moves = [move for move in drawn if move]
    assert 0.2 < len(moves) / 800 < 0.3
    assert {move.turns for move in moves} == {0, 1, 2, 3}
    for move in moves:
        height, width = (16, 8) if move.turns % 2 == 0 else (8, 16)
        assert height / 2 <= move.size[0] <= height
        assert width / 2 <= move.size[1] <= width
