import pytest
import torch

from ldmlab.diffusion.predictions import Prediction
from ldmlab.diffusion.samplers import DDIM, DDPM, Euler, Heun, PerSampleNoise, posterior_std
from ldmlab.diffusion.schedules import Cosine, Linear, RectifiedFlow, expand

MEAN, STD = 1.5, 0.6
SCHEDULES = [Linear(), Cosine(), RectifiedFlow(), RectifiedFlow(shift=2.0)]


def gaussian_denoiser(schedule, calls=None):
    """The optimal denoiser of data N(MEAN, STD²): E[x0 | xt] in closed form."""

    def denoise(xt, t):
        if calls is not None:
            calls.append(t)
        alpha, sigma = (expand(c, xt) for c in schedule.coefficients(t.double()))
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0 = MEAN + gain * (xt - alpha * MEAN)
        return Prediction(x0, (xt - alpha * x0) / sigma)

    return denoise


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(
    "sampler",
    [DDIM(200), DDIM(200, eta=1.0), DDPM(400), DDPM(400, variance="large"), Euler(200), Heun(40)],
    ids=repr,
)
def test_a_gaussian_keeps_its_mean_and_variance(sampler, schedule):
    noise = torch.randn(8_000, 1, dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    samples = sampler(gaussian_denoiser(schedule), noise, schedule, torch.randn_like)
    # the end of the DDPM path is not quite standard normal, and 8,000 draws of noise have an error of their own
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert samples.std().item() == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("sampler", [DDIM, DDPM, Euler])
def test_first_order_samplers_with_n_steps_call_the_network_n_times(sampler, steps):
    calls = []
    sampler(steps)(gaussian_denoiser(Linear(), calls), torch.randn(3, 1), Linear(), torch.randn_like)
    assert len(calls) == steps
    assert calls[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_heun_with_n_steps_calls_the_network_2n_minus_1_times(steps):
    calls = []
    Heun(steps)(gaussian_denoiser(Linear(), calls), torch.randn(3, 1), Linear(), torch.randn_like)
    assert len(calls) == 2 * steps - 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_euler_in_straight_line_variables_is_ddim(schedule):
    noise = torch.randn(5, 3, dtype=torch.float64)
    denoise = gaussian_denoiser(schedule)
    # eight steps: times in eighths lose nothing in the float32 that networks are given
    torch.testing.assert_close(
        Euler(8)(denoise, noise, schedule, torch.randn_like), DDIM(8)(denoise, noise, schedule, torch.randn_like)
    )


@pytest.mark.parametrize("schedule", [RectifiedFlow(), RectifiedFlow(shift=2.0)], ids=repr)
def test_heun_converges_at_second_order_and_euler_at_first(schedule):
    # on variance-preserving schedules sigma grows like sqrt(t), so a uniform grid has no clean order near t = 0
    noise = torch.randn(50, 1, dtype=torch.float64)
    denoise = gaussian_denoiser(schedule)
    exact = Heun(1000)(denoise, noise, schedule, torch.randn_like)

    def error(sampler):
        return (sampler(denoise, noise, schedule, torch.randn_like) - exact).abs().mean().item()

    assert error(Euler(80)) / error(Euler(160)) == pytest.approx(2, rel=0.25)
    assert error(Heun(80)) / error(Heun(160)) > 3.2


def test_ddim_with_eta_one_has_the_variance_of_ddpm():
    schedule, noise = Linear(), torch.randn(20, 1, dtype=torch.float64)
    denoise = gaussian_denoiser(schedule)
    ddim = DDIM(50, eta=1.0)(denoise, noise, schedule, PerSampleNoise(range(20)))
    ddpm = DDPM(50)(denoise, noise, schedule, PerSampleNoise(range(20)))
    torch.testing.assert_close(ddim, ddpm)


def test_posterior_std_is_beta_tilde_on_the_ddpm_grid():
    t = torch.tensor([0.5, 0.499], dtype=torch.float64)
    alpha, sigma = Linear().coefficients(t)
    beta = Linear().betas()[499]
    expected = ((1 - alpha[1] ** 2) / (1 - alpha[0] ** 2) * beta).sqrt()
    torch.testing.assert_close(posterior_std(alpha[0], sigma[0], alpha[1], sigma[1]), expected)


def test_a_sample_does_not_depend_on_the_batch_it_is_in():
    schedule, denoise = Cosine(), gaussian_denoiser(Cosine())
    together = PerSampleNoise([5, 6, 7])
    alone = PerSampleNoise([6])
    shape = (2, 4, 4)
    a = DDPM(9)(denoise, together(torch.empty(3, *shape)), schedule, together)[1]
    b = DDPM(9)(denoise, alone(torch.empty(1, *shape)), schedule, alone)[0]
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("sampler", [DDIM, DDPM, Euler, Heun])
def test_zero_steps_are_refused(sampler):
    with pytest.raises(ValueError, match=r"sampler\.steps: a whole number of 1 or more"):
        sampler(0)(gaussian_denoiser(Linear()), torch.randn(1, 1), Linear(), torch.randn_like)
