import math
from functools import partial

import pytest
import torch

from ldmlab.diffusion.closed_form import GaussianMixture, measured_order
from ldmlab.diffusion.grids import GRIDS, Karras
from ldmlab.diffusion.predictions import Prediction
from ldmlab.diffusion.samplers import (
    DDIM,
    DDPM,
    PLMS,
    DPMpp1,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp3M,
    Euler,
    EulerAncestral,
    Heun,
    PerSampleNoise,
    UniPC,
)
from ldmlab.diffusion.schedules import EDM, Cosine, Linear, RectifiedFlow, ScaledLinear, Sigmoid, SigmoidBeta, expand

MEAN, STD = 1.5, 0.6
SCHEDULES = [
    Linear(),
    ScaledLinear(),
    Cosine(),
    Sigmoid(),
    SigmoidBeta(),
    Linear(zero_terminal_snr=True),
    EDM(),
    RectifiedFlow(),
    RectifiedFlow(shift=2.0),
]
SAMPLERS = [
    DDPM(400),
    DDPM(400, variance="large"),
    DDIM(200),
    DDIM(200, eta=1.0),
    PLMS(200),
    Euler(200),
    EulerAncestral(400),
    Heun(100),
    Heun(100, s_churn=10.0),
    DPMpp1(200),
    DPMpp2M(100),
    DPMpp3M(100),
    DPMpp2MSDE(200),
    UniPC(100),
    UniPC(100, order=3),
]
ONE_EVALUATION = [DDPM, DDIM, Euler, EulerAncestral, DPMpp1, DPMpp2M, DPMpp3M, DPMpp2MSDE, UniPC]
EVERY = [*ONE_EVALUATION, Heun, PLMS]


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
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_gaussian_keeps_its_mean_and_variance(sampler, schedule):
    torch.manual_seed(0)
    noise = torch.randn(8_000, 1, dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    samples = sampler(gaussian_denoiser(schedule), noise, schedule, torch.randn_like)
    # the end of some paths is not quite standard normal, and 8,000 draws of noise have an error of their own
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.04)
    assert samples.std().item() == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), RectifiedFlow()], ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize(
    "sampler", [DDPM(250), DDIM(250, eta=1.0), EulerAncestral(250), Heun(100, s_churn=20.0), DPMpp2MSDE(250)], ids=repr
)
def test_stochastic_samplers_keep_mean_and_covariance_of_a_mixture(sampler, schedule):
    torch.manual_seed(0)
    noise = torch.randn(20_000, 2, dtype=torch.float64)
    samples = sampler(GaussianMixture().denoiser(schedule), noise, schedule, torch.randn_like)
    torch.testing.assert_close(samples.mean(0), GaussianMixture().mean(), rtol=0, atol=0.04)
    torch.testing.assert_close(samples.T.cov(), GaussianMixture().covariance(), rtol=0, atol=0.04)


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("schedule", [Linear(), EDM(), RectifiedFlow()], ids=lambda schedule: type(schedule).__name__)
def test_samplers_take_exactly_their_steps_on_every_grid(schedule, grid, steps):
    for sampler in ONE_EVALUATION:
        calls = []
        x = sampler(steps, grid)(gaussian_denoiser(schedule, calls), torch.randn(3, 1), schedule, torch.randn_like)
        assert len(calls) == steps
        assert torch.isfinite(x).all()
        if grid != "leading":
            assert calls[0].tolist() == [1, 1, 1]
        times = [call[0].item() for call in calls]
        assert times == sorted(set(times), reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_the_number_of_evaluations_is_what_steps_for_says(steps):
    for sampler in EVERY:
        calls = []
        schedule = Linear()
        sampler(steps)(gaussian_denoiser(schedule, calls), torch.randn(3, 1), schedule, torch.randn_like)
        assert sampler.steps_for(len(calls)) == steps
    assert Heun.steps_for(20) == 10  # 19 evaluations: the most that are not more
    assert PLMS.steps_for(2) == 1


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_heun_calls_the_network_2n_minus_1_times_and_plms_once_more_than_its_steps(steps):
    for sampler, expected in ((Heun, 2 * steps - 1), (PLMS, steps + (steps > 1))):
        calls = []
        sampler(steps)(gaussian_denoiser(Linear(), calls), torch.randn(3, 1), Linear(), torch.randn_like)
        assert len(calls) == expected


def test_churn_asks_about_more_noise_within_its_range_only():
    schedule, calls, plain = EDM(), [], []
    Heun(10)(gaussian_denoiser(schedule, plain), torch.randn(2, 1), schedule, torch.randn_like)
    churning = Heun(10, s_churn=5.0, s_tmin=0.1, s_tmax=20.0)
    churning(gaussian_denoiser(schedule, calls), torch.randn(2, 1), schedule, torch.randn_like)
    levels, higher = (schedule.coefficients(torch.stack(c)[::2, 0].double())[1] for c in (plain, calls))
    factor = 1 + min(5 / 10, math.sqrt(2) - 1)
    inside = (levels >= 0.1) & (levels <= 20)
    assert inside.any()
    assert not inside.all()
    torch.testing.assert_close(higher, torch.where(inside, levels * factor, levels), rtol=1e-5, atol=1e-6)


ORDERS = [
    (DDIM, {}, 1),
    (Euler, {}, 1),
    (DPMpp1, {}, 1),
    (PLMS, {}, 2),
    (Heun, {"variables": "straight"}, 2),
    (Heun, {"variables": "noise_level"}, 2),
    (DPMpp2M, {}, 2),
    (DPMpp3M, {}, 3),
    (UniPC, {"order": 1}, 2),
    (UniPC, {"order": 2}, 3),
    (UniPC, {"order": 3}, 4),
]


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("sampler", "options", "order"), ORDERS)
def test_the_error_falls_at_the_solver_s_order(sampler, options, order, schedule):
    # from t = 0.97, where even the rectified flow's noise level is finite
    measured = measured_order(partial(sampler, **options), schedule)
    # a method may do better where its leading error happens to be small
    assert order - 0.6 < measured < order + 0.7


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__)
def test_the_published_third_order_solver_is_of_second_order(schedule):
    assert measured_order(partial(DPMpp3M, curvature=0.5), schedule, (160, 320)) < 2.1


def test_a_sample_does_not_depend_on_the_batch_it_is_in():
    schedule, denoise = Cosine(), gaussian_denoiser(Cosine())
    shape = (2, 4, 4)
    for sampler in (DDPM(9), DDIM(9, eta=1.0), DPMpp2MSDE(9), Heun(9, s_churn=9.0)):
        together, alone = PerSampleNoise([5, 6, 7]), PerSampleNoise([6])
        a = sampler(denoise, together(torch.empty(3, *shape)), schedule, together)[1]
        b = sampler(denoise, alone(torch.empty(1, *shape)), schedule, alone)[0]
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("sampler", EVERY)
def test_the_update_is_at_least_in_float32(sampler):
    schedule = Linear()
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2):
        noise = torch.randn(3, 1, dtype=dtype)
        assert sampler(4)(gaussian_denoiser(schedule), noise, schedule, torch.randn_like).dtype == expected


@pytest.mark.parametrize("sampler", EVERY)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"^steps: a whole number of 1 or more"),
        ({"steps": 2.5}, "^steps: a whole number is needed, not 2.5"),
        ({"grid": "karas"}, r"^grid: auto, one of uniform, .* with a _target_ is needed, not karas"),
        ({"grid": {"rho": 5}}, r"^grid: .* is needed, not {'rho': 5}"),
        ({"grid": None}, r"^grid: .* is needed, not None"),
    ],
)
def test_wrong_options_are_refused(sampler, options, message):
    with pytest.raises(ValueError, match=message):
        sampler(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDPM(variance="tiny"), "small, large, learned is needed, not tiny"),
        (lambda: DDIM(eta=1.5), "from 0 to 1 is needed, not 1.5"),
        (lambda: UniPC(order=4), "1, 2 or 3 is needed, not 4"),
        (lambda: Heun(s_churn=-1.0), r"^s_churn: .* not -1"),
        (lambda: Heun(s_tmax=math.nan), "s_tmax: a number is needed, not nan"),
        (lambda: PLMS(variables=1), "straight, noise_level is needed, not 1"),
        (lambda: Heun(variables="time"), "straight, noise_level is needed, not time"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_learned_variance_is_asked_only_of_a_model_that_has_one():
    assert DDPM(variance="learned").problem_with(Linear(), learned_variance=True) is None
    assert "has not learned its variance" in DDPM(variance="learned").problem_with(Linear(), learned_variance=False)
    assert all(sampler(4).problem_with(RectifiedFlow(), learned_variance=False) is None for sampler in EVERY)


@pytest.mark.parametrize("solver", [Heun, PLMS])
def test_infinite_noise_levels_are_refused(solver):
    sampler = solver(variables="noise_level")
    assert sampler.problem_with(Linear(), learned_variance=False) is None
    assert "is infinite; use straight" in sampler.problem_with(RectifiedFlow(), learned_variance=False)


@pytest.mark.parametrize(
    "times",
    [
        [1.0, 0.5, 0.5, 0.0],  # does not fall
        [0.0, 0.3, 0.6, 1.0],  # rises
        [1.0, math.nan, 0.2, 0.0],
        [1.5, 1.0, 0.5, 0.0],  # beyond the path
        [1.0, 0.5, 0.0, -0.1],
        [1.0, 0.0],  # too few
    ],
)
def test_a_grid_that_does_not_fall_from_one_to_zero_is_refused(times):
    with pytest.raises(ValueError, match="does not give 4 falling times from 1 to 0"):
        DDIM(3, lambda steps, schedule: torch.tensor(times, dtype=torch.float64)).points(Linear())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_over_the_whole_path_higher_orders_are_more_exact_than_ddim(schedule):
    noise = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def reached(sampler):
        return sampler(GaussianMixture().denoiser(schedule), noise, schedule, torch.randn_like)

    exact = reached(UniPC(1000, "logsnr", 3))
    samplers = (DDIM(20), PLMS(20), Heun(20), DPMpp2M(20), UniPC(20))
    ddim, *others = ((reached(sampler) - exact).square().mean().sqrt().item() for sampler in samplers)
    assert all(other < 0.95 * ddim for other in others)


def test_a_grid_object_takes_the_place_of_a_name():
    assert DDIM(5, Karras()).points(Linear()) == DDIM(5, "karras").points(Linear())
