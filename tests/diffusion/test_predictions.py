import pytest
import torch

from ldmlab.diffusion.predictions import PREDICTIONS
from ldmlab.diffusion.schedules import Cosine, Linear, RectifiedFlow, add_noise
from ldmlab.diffusion.weightings import MinSNR, Uniform

TIMES = torch.tensor([0.01, 0.3, 0.5, 0.9], dtype=torch.float64)
SCHEDULES = [Linear(), Cosine(), RectifiedFlow(), RectifiedFlow(shift=2.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_target_as_output_gives_back_x0_and_noise(name, schedule):
    x0, noise = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    alpha, sigma = schedule.coefficients(TIMES)
    xt = add_noise(schedule, x0, noise, TIMES)
    prediction = PREDICTIONS[name].to_prediction(PREDICTIONS[name].target(x0, noise, alpha, sigma), xt, alpha, sigma)
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.noise, noise)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", PREDICTIONS)
def test_x0_gain_is_the_derivative_of_x0_by_the_output(name, schedule):
    alpha, sigma = schedule.coefficients(TIMES)
    xt = torch.randn(4, 1, dtype=torch.float64)
    output = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    x0 = PREDICTIONS[name].to_prediction(output, xt, alpha, sigma).x0
    (gradient,) = torch.autograd.grad(x0.sum(), output)
    torch.testing.assert_close(PREDICTIONS[name].x0_gain(alpha, sigma), gradient.abs().flatten())


def test_velocity_on_the_straight_path_is_its_time_derivative():
    x0, noise = torch.randn(2, 1, 5, dtype=torch.float64)
    step = 1e-6
    now, later = (
        add_noise(RectifiedFlow(), x0, noise, torch.tensor([t], dtype=torch.float64)) for t in (0.4, 0.4 + step)
    )
    target = PREDICTIONS["velocity"].target(x0, noise, torch.tensor([0.6]), torch.tensor([0.4]))
    torch.testing.assert_close((later - now) / step, target, rtol=1e-6, atol=1e-8)


def test_min_snr_gives_the_weights_of_its_paper_for_epsilon_and_v():
    alpha, sigma = Cosine().coefficients(TIMES)
    snr = (alpha / sigma) ** 2
    clipped = torch.minimum(snr, torch.full_like(snr, 5.0))
    torch.testing.assert_close(MinSNR(5.0)(alpha, sigma, PREDICTIONS["epsilon"]), clipped / snr)
    torch.testing.assert_close(MinSNR(5.0)(alpha, sigma, PREDICTIONS["v"]), clipped / (snr + 1))


def test_uniform_weighting_counts_every_time_the_same():
    alpha, sigma = Cosine().coefficients(TIMES)
    assert Uniform()(alpha, sigma, PREDICTIONS["v"]).tolist() == [1, 1, 1, 1]
