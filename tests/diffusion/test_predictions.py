import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldmlab.diffusion.predictions import PREDICTIONS, Preconditioned, convert
from ldmlab.diffusion.schedules import EDM, Cosine, Linear, RectifiedFlow, add_noise

TIMES = torch.tensor([0.01, 0.3, 0.5, 0.9], dtype=torch.float64)
ZERO_SNR = Cosine(zero_terminal_snr=True)
SCHEDULES = [Linear(), Cosine(), ZERO_SNR, EDM(), RectifiedFlow(), RectifiedFlow(shift=2.0)]
TYPES = {**PREDICTIONS, "edm with deviation 0.5": Preconditioned(0.5)}
times = st.floats(1e-3, 1.0)
values = st.floats(-5, 5)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", TYPES)
def test_the_target_as_output_gives_back_x0_and_noise(name, schedule):
    x0, noise = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    alpha, sigma = schedule.coefficients(TIMES)
    xt = add_noise(schedule, x0, noise, TIMES)
    prediction = TYPES[name].to_prediction(TYPES[name].target(x0, noise, alpha, sigma), xt, alpha, sigma)
    torch.testing.assert_close(prediction.x0, x0, rtol=1e-5, atol=1e-5)
    # on the exploding path xt says next to nothing of x0 at t = 1, or of the noise near t = 0
    close = {"rtol": 1e-5, "atol": 1e-3} if isinstance(schedule, EDM) else {}
    torch.testing.assert_close(
        sigma[:, None, None, None] * prediction.noise, sigma[:, None, None, None] * noise, **close
    )


@given(t=times, x0=values, noise=values, source=st.sampled_from(sorted(TYPES)), target=st.sampled_from(sorted(TYPES)))
def test_conversions_round_trip_at_every_time(t, x0, noise, source, target):
    for schedule in (Linear(), Cosine(), EDM(), RectifiedFlow()):
        if schedule.ends_in_noise and t == 1 and "epsilon" in (source, target):
            continue  # there the noise is all that xt says
        alpha, sigma = schedule.coefficients(tensor(t))
        if sigma < 1e-6:
            continue
        xt = alpha * x0 + sigma * noise
        output = TYPES[source].target(tensor(x0), tensor(noise), alpha, sigma)
        other = convert(output, TYPES[source], TYPES[target], xt, alpha, sigma)
        back = convert(other, TYPES[target], TYPES[source], xt, alpha, sigma)
        # an output is as exact as what it is made of: errors of x0 and noise grow by sigma / alpha and back
        ratio = (sigma / alpha).item() if alpha > 0 else 1.0
        scale = 1e-12 * max(ratio, 1 / ratio) * (1 + abs(x0) + abs(noise))
        torch.testing.assert_close(back, output, rtol=1e-9, atol=10 * scale)


@pytest.mark.parametrize("source", [name for name in TYPES if name != "epsilon"])
@pytest.mark.parametrize("target", [name for name in TYPES if name != "epsilon"])
@pytest.mark.parametrize("schedule", [ZERO_SNR, RectifiedFlow()], ids=repr)
def test_conversions_hold_where_nothing_of_the_data_is_left(schedule, source, target):
    x0, noise = torch.randn(2, 1, 8, dtype=torch.float64)
    one = tensor(1.0)
    alpha, sigma = schedule.coefficients(one)
    assert alpha == 0
    xt = add_noise(schedule, x0, noise, one)
    output = TYPES[source].target(x0, noise, alpha, sigma)
    other = convert(output, TYPES[source], TYPES[target], xt, alpha, sigma)
    torch.testing.assert_close(other, TYPES[target].target(x0, noise, alpha, sigma))


@pytest.mark.parametrize("name", ["epsilon", "v", "velocity", "edm"])
def test_at_the_data_the_output_is_still_defined_and_x0_is_xt(name):
    x0 = torch.randn(1, 8, dtype=torch.float64)
    prediction = PREDICTIONS[name].to_prediction(torch.randn_like(x0), x0, tensor(1.0), tensor(0.0))
    torch.testing.assert_close(prediction.x0, x0)
    assert torch.isfinite(prediction.noise).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", TYPES)
def test_x0_gain_is_the_derivative_of_x0_by_the_output(name, schedule):
    alpha, sigma = schedule.coefficients(TIMES)
    xt = torch.randn(4, 1, dtype=torch.float64)
    output = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    x0 = TYPES[name].to_prediction(output, xt, alpha, sigma).x0
    (gradient,) = torch.autograd.grad(x0.sum(), output)
    torch.testing.assert_close(TYPES[name].x0_gain(alpha, sigma), gradient.abs().flatten())


def test_velocity_on_the_straight_path_is_its_time_derivative():
    x0, noise = torch.randn(2, 1, 5, dtype=torch.float64)
    step = 1e-6
    now, later = (add_noise(RectifiedFlow(), x0, noise, tensor(t)) for t in (0.4, 0.4 + step))
    target = PREDICTIONS["velocity"].target(x0, noise, tensor(0.6), tensor(0.4))
    torch.testing.assert_close((later - now) / step, target, rtol=1e-6, atol=1e-8)


def test_edm_s_output_on_a_variance_preserving_path_is_minus_v():
    x0, noise = torch.randn(2, 4, 3, dtype=torch.float64)
    coefficients = Cosine().coefficients(TIMES)
    edm, v = (PREDICTIONS[name].target(x0, noise, *coefficients) for name in ("edm", "v"))
    torch.testing.assert_close(edm, -v)


def test_preconditioning_is_that_of_edm_s_table():
    sigma_data, sigma = 0.5, tensor(0.01, 0.3, 2.0, 50.0)
    alpha, output, y = torch.ones(4, dtype=torch.float64), torch.randn(4).double(), torch.randn(4).double()
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    prediction = Preconditioned(sigma_data).to_prediction(output, y, alpha, sigma)
    torch.testing.assert_close(prediction.x0, c_skip * y + c_out * output)
    torch.testing.assert_close(prediction.noise, (y - prediction.x0) / sigma)
    torch.testing.assert_close(
        Preconditioned(sigma_data).input_scale(alpha, sigma), 1 / (sigma**2 + sigma_data**2).sqrt()
    )


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_network_sees_about_unit_variance_on_every_path(schedule, name):
    alpha, sigma = schedule.coefficients(torch.linspace(0, 1, 50, dtype=torch.float64))
    variance = PREDICTIONS[name].input_scale(alpha, sigma) ** 2 * (alpha**2 + sigma**2)
    assert variance.max() <= 1 + 1e-9
    assert variance.min() >= 0.5 - 1e-9
