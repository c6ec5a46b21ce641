"""Each regularizer against its definition, computed by hand."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from two_processes import in_two_processes

from ldmlab.autoencoders.base import DiagonalGaussian
from ldmlab.autoencoders.regularizers import FSQ, KL, VQ, code_use


def point(latents):
    return DiagonalGaussian(latents, torch.zeros_like(latents))


def test_the_kl_penalty_is_that_of_torch_distributions_per_pixel_value():
    features = torch.randn(4, 6, 5, 5)
    regularizer = KL(weight=0.3)
    posterior = regularizer.posterior(features)
    mean, log_variance = features.chunk(2, 1)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum() / 4800
    torch.testing.assert_close(regularizer(posterior, 4800).penalty, 0.3 * expected)


def test_free_bits_cost_nothing_until_a_channel_says_more():
    quiet, loud = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 3.0)
    features = torch.cat([quiet, loud, torch.zeros(2, 2, 4, 4)], 1).requires_grad_()
    regularizer = KL(weight=1.0, free_bits=0.5)
    penalty = regularizer(regularizer.posterior(features), 32).penalty
    assert penalty.item() == pytest.approx(0.5 * math.log(2) + 4.5)  # nats of the quiet and of the loud channel
    penalty.backward()
    assert features.grad[:, 0].abs().max() == 0
    assert features.grad[:, 1].abs().min() > 0


def test_latents_of_a_gaussian_posterior_are_drawn():
    regularizer = KL(1e-4)
    posterior = regularizer.posterior(torch.cat([torch.full((1, 1, 64, 64), 2.0), torch.full((1, 1, 64, 64), 0.0)], 1))
    latents = regularizer(posterior, 1).latents
    assert latents.mean().item() == pytest.approx(2.0, abs=0.1)
    assert latents.std().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(regularizer.decoder_input(latents), latents)


@pytest.fixture
def vq():
    """Four codes at the corners of a square."""
    quantizer = VQ(2, 4, commitment=0.25, decay=0.9, restart_below=0.0)
    quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    quantizer.sums.copy_(quantizer.codebook)
    quantizer.counts.fill_(1.0)
    quantizer.begun.fill_(True)
    return quantizer


def test_every_position_gets_its_nearest_code(vq):
    latents = torch.rand(3, 2, 4, 4) * 2 - 0.5
    vectors = latents.movedim(1, -1).reshape(-1, 2)
    expected = torch.cdist(vectors, vq.codebook).argmin(1).view(3, 4, 4)
    assert torch.equal(vq.indices(latents), expected)
    assert torch.equal(vq.decoder_input(latents), vq.codebook[expected].movedim(-1, 1))


def test_the_gradient_passes_straight_through_and_commitment_adds_its_own(vq):
    latents = (torch.rand(2, 2, 4, 4) * 2 - 0.5).requires_grad_()
    made = vq.eval()(point(latents), 1)
    assert torch.equal(made.latents, vq.decoder_input(latents))
    weights = torch.randn_like(latents)
    (made.latents * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)

    latents.grad = None
    penalty = vq(point(latents), 1).penalty
    distance = latents.detach() - vq.decoder_input(latents.detach())
    assert penalty.item() == pytest.approx(0.25 * distance.square().mean().item())
    penalty.backward()
    torch.testing.assert_close(latents.grad, 0.25 * 2 * distance / latents.numel())


def test_codes_follow_the_running_mean_of_what_chose_them(vq):
    near_first = torch.tensor([[0.1, 0.0], [0.3, 0.2]])
    near_last = torch.tensor([[0.9, 1.2]])
    latents = torch.cat([near_first, near_last]).T.reshape(1, 2, 1, 3)
    vq.train()(point(latents), 1)
    # counts 0.9 · 1 + 0.1 · n, sums likewise (van den Oord et al. 2017, eq. 6 to 8)
    torch.testing.assert_close(vq.counts, torch.tensor([1.1, 0.9, 0.9, 1.0]))
    torch.testing.assert_close(vq.codebook[0], 0.1 * near_first.sum(0) / 1.1)
    torch.testing.assert_close(vq.codebook[3], (0.9 + 0.1 * near_last[0]) / 1.0)
    torch.testing.assert_close(vq.codebook[1], torch.tensor([0.0, 1.0]))


def test_evaluation_leaves_the_codebook_alone(vq):
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq.eval()(point(torch.randn(2, 2, 4, 4)), 1)
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())


def test_dead_codes_start_again_at_latents_of_the_batch():
    quantizer = VQ(2, 64, decay=0.5, restart_below=0.1).train()
    latents = torch.randn(4, 2, 8, 8)
    quantizer(point(latents), 1)
    quantizer.codebook[:32] = quantizer.codebook[0]
    quantizer.sums.copy_(quantizer.codebook * quantizer.counts[:, None])
    uses = []
    for _ in range(12):
        made = quantizer(point(latents), 1)
        uses.append(made.values["codebook_usage"].item())
    assert uses[0] < 0.6
    assert uses[-1] > 0.95


def test_without_restarts_dead_codes_stay_dead():
    quantizer = VQ(2, 64, decay=0.5, restart_below=0.0).train()
    latents = torch.randn(4, 2, 8, 8)
    quantizer(point(latents), 1)
    quantizer.codebook[:32] = 100.0
    quantizer.sums.copy_(quantizer.codebook * quantizer.counts[:, None])
    for _ in range(12):
        made = quantizer(point(latents), 1)
    assert made.values["codebook_usage"] <= 0.5


def quantizer_after(steps, restart_below, rows=slice(None)):
    torch.manual_seed(0)
    quantizer = VQ(2, 8, decay=0.5, restart_below=restart_below).train()
    quantizer.codebook[4:] = 50.0  # dead
    quantizer.counts.fill_(1.0)
    quantizer.sums.copy_(quantizer.codebook)
    quantizer.begun.fill_(True)
    latents = torch.randn(4, 2, 4, 4)
    for _ in range(steps):
        quantizer(point(latents[rows]), 1)
    return quantizer.state_dict()


def half_of_the_latents_each(rank, folder):
    rows = slice(2 * rank, 2 * rank + 2)
    states = {restart_below: quantizer_after(4, restart_below, rows) for restart_below in (0.0, 0.3)}
    torch.save(states, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_keep_one_codebook_of_all_their_latents(tmp_path):
    in_two_processes(half_of_the_latents_each, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for restart_below, state in first.items():
        assert all(torch.equal(value, second[restart_below][name]) for name, value in state.items())
    for name, value in quantizer_after(4, restart_below=0.0).items():
        torch.testing.assert_close(first[0.0][name], value)
    assert first[0.0]["codebook"].max() == 50
    assert first[0.3]["codebook"].abs().max() < 5  # the dead ones started again, at latents


def test_the_codebook_begins_at_latents_even_if_there_are_fewer_of_them_than_codes():
    quantizer = VQ(3, 50).train()
    latents = torch.randn(1, 3, 4, 4) + 7
    quantizer(point(latents), 1)
    assert quantizer.begun
    assert (quantizer.codebook.mean(0) - 7).abs().max() < 1


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [3], [7, 4]])
def test_fsq_has_just_its_levels(levels):
    quantizer = FSQ(len(levels), levels)
    features = torch.randn(8, len(levels), 32, 32) * 6
    latents = quantizer.posterior(features).mean
    made = quantizer(point(latents), 1)
    for channel, level in enumerate(levels):
        assert len(made.latents[:, channel].unique()) == level
    assert latents.abs().max() <= 1 + 1e-6
    assert quantizer.codes == math.prod(levels)
    indices = quantizer.indices(latents)
    assert 0 <= indices.min() <= indices.max() < quantizer.codes
    # one number for each combination of levels, and back
    vectors = made.latents.movedim(1, -1).reshape(-1, len(levels))
    assert len(vectors.unique(dim=0)) == len(indices.unique())


def test_fsq_rounds_what_diffusion_gets_wrong_and_clamps_what_is_out_of_reach():
    quantizer = FSQ(2, [5, 4])
    latents = torch.tensor([[0.55, 9.0], [-9.0, -0.55]]).reshape(1, 2, 1, 2)
    assert torch.equal(quantizer.decoder_input(latents).flatten(), torch.tensor([0.5, 1.0, -1.0, -0.5]))


def test_the_gradient_of_fsq_passes_straight_through():
    latents = (torch.rand(2, 1, 4, 4) * 2 - 1).requires_grad_()
    weights = torch.randn_like(latents)
    (FSQ(1, [7])(point(latents), 1).latents * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)


def test_perplexity_and_usage():
    even = code_use(torch.tensor([5, 5, 5, 5, 0]))
    assert even["codebook_perplexity"].item() == pytest.approx(4)
    assert even["codebook_usage"].item() == pytest.approx(0.8)
    assert code_use(torch.tensor([9, 0, 0]))["codebook_perplexity"].item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KL(-1.0), "weight"),
        (lambda: KL(1.0, free_bits="a"), "free_bits"),
        (lambda: VQ(3, 1), "codes"),
        (lambda: VQ(3, 8, decay=1.0), "decay"),
        (lambda: VQ(3, 8, commitment=None), "commitment"),
        (lambda: FSQ(3, [8, 5]), "levels: 3 whole numbers"),
        (lambda: FSQ(1, [2]), "levels"),
    ],
)
def test_settings_that_cannot_be_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
