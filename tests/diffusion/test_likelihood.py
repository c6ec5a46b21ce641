import math

import pytest
import torch

from ldmlab.diffusion.likelihood import Bins, log_probability, normal_divergence, prior_term, step_term
from ldmlab.diffusion.posterior import Posterior
from ldmlab.diffusion.predictions import PREDICTIONS, Prediction
from ldmlab.diffusion.schedules import EDM, Cosine, Linear, RectifiedFlow, add_noise
from ldmlab.diffusion.weightings import VariationalBound


def at(step, steps=1000, n=1):
    return torch.full((n,), step / steps, dtype=torch.float64)


def test_divergence_is_that_of_torch_distributions():
    a, b = torch.distributions.Normal(0.3, 0.7), torch.distributions.Normal(-0.2, 1.4)
    ours = normal_divergence(torch.tensor(0.5), torch.tensor(2 * math.log(0.7)), torch.tensor(2 * math.log(1.4)))
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(a, b))


@pytest.mark.parametrize("std", [1e-3, 0.02, 0.5])
@pytest.mark.parametrize("mean", [-1.0, 0.013, 0.7])
def test_the_decoder_s_cells_share_out_all_probability(mean, std):
    cells = torch.arange(256).reshape(256, 1, 1, 1) / 127.5 - 1
    one = torch.ones(1, 1, 1, 1)
    bins = Bins(one / 255, -one, one)
    log_p = log_probability(cells, torch.full_like(cells, mean), torch.full_like(cells, 2 * math.log(std)), bins)
    assert log_p.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_bound_s_terms_are_its_weights_times_the_error_of_x0():
    schedule, steps = Cosine(), 1000
    x0, wrong, noise = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64)
    for step in (2, 300, 999):
        t = at(step, n=4)
        xt = add_noise(schedule, x0, noise, t)
        prediction = Prediction.from_x0(wrong, xt, *schedule.coefficients(t))
        term = step_term(x0, xt, prediction, t, schedule, steps, "small")
        weight = VariationalBound(steps)(t, schedule, PREDICTIONS["sample"])
        error = (x0 - wrong).square().flatten(1).mean(1)
        torch.testing.assert_close(term, weight * error / steps / math.log(2), rtol=1e-6, atol=1e-12)


def test_for_normal_data_the_bound_is_the_entropy():
    # the reverse steps of standard normal data have the variance of the forward ones: the bound is tight
    schedule, steps = Linear(steps=50, beta_end=0.3), 50
    torch.manual_seed(0)
    x0 = torch.randn(4_000, 8, dtype=torch.float64)
    total = prior_term(x0, schedule)
    for step in range(1, steps + 1):
        t = at(step, steps, len(x0))
        xt = add_noise(schedule, x0, torch.randn_like(x0), t)
        alpha, sigma = schedule.coefficients(t)
        prediction = Prediction.from_x0(alpha[:, None] * xt, xt, alpha, sigma)
        total = total + step_term(x0, xt, prediction, t, schedule, steps, "large")
    entropy = 0.5 * math.log2(2 * math.pi * math.e)
    assert total.mean().item() == pytest.approx(entropy, abs=0.02)


def test_bits_of_pixels_are_about_those_of_the_density_less_the_cell():
    # where the decoder is much wider than a cell, probability is density times its width
    schedule = Linear()
    x0 = (torch.randint(60, 190, (2, 3, 8, 8)) / 127.5 - 1).double()
    xt = add_noise(schedule, x0, torch.randn_like(x0), at(1, n=2))
    alpha, sigma = schedule.coefficients(at(1, n=2))
    prediction = Prediction.from_x0(x0, xt, alpha, sigma)
    one = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    arguments = (x0, xt, prediction, at(1, n=2), schedule, 1000, "large")
    probability = step_term(*arguments, bins=Bins(one / 255, -one, one))
    torch.testing.assert_close(probability, step_term(*arguments) - math.log2(2 / 255), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(zero_terminal_snr=True), EDM(), RectifiedFlow()], ids=repr)
def test_the_prior_s_term_is_what_the_end_of_the_path_says_of_the_data(schedule):
    term = prior_term(torch.randn(5, 8), schedule)
    assert (term >= 0).all()
    assert (term < 1e-3).all()
    if schedule.ends_in_noise:
        assert (term == 0).all()


def test_learned_variance_goes_from_the_smallest_to_the_largest():
    posterior = Posterior.on_chain(at(400), Linear(), 1000)
    like = torch.zeros(1, 2, dtype=torch.float64)
    learned = posterior.log_variance("learned", torch.tensor([[0.0, 1.0]], dtype=torch.float64), like)
    small, large = (posterior.log_variance(name, None, like) for name in ("small", "large"))
    torch.testing.assert_close(learned, torch.cat([small, large], dim=1))
    with pytest.raises(ValueError, match="learned no variance"):
        posterior.log_variance("learned", None, like)


def test_the_first_step_has_the_smallest_variance_of_the_second():
    first, second = (Posterior.on_chain(at(step), Cosine(), 1000) for step in (1, 2))
    torch.testing.assert_close(first.small, second.small)
