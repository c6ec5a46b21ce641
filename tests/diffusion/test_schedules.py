import math

import pytest
import torch

from ldmlab.diffusion.schedules import (
    EDM,
    Cosine,
    Linear,
    RectifiedFlow,
    ScaledLinear,
    Sigmoid,
    SigmoidBeta,
    add_noise,
)

CHAINS = [Linear(), ScaledLinear(), Cosine(), Sigmoid(), Sigmoid(tau=0.7), SigmoidBeta()]
SHORT = Linear(steps=10, beta_end=0.5)
ZERO_SNR = [type(chain)(zero_terminal_snr=True) for chain in CHAINS if chain != Sigmoid(tau=0.7)]
VARIANCE_PRESERVING = [*CHAINS, SHORT, *ZERO_SNR]
EVERY = [*VARIANCE_PRESERVING, EDM(), RectifiedFlow(), RectifiedFlow(shift=3.0)]
GRID = torch.linspace(0, 1, 1001, dtype=torch.float64)


def test_linear_equals_the_product_of_one_minus_beta_on_its_grid():
    expected, product = [], 1.0
    for k in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * k / 999)
        expected.append(product)
    alpha, _ = Linear().coefficients(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(alpha**2, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)


def test_scaled_linear_is_linear_in_the_square_root_of_beta():
    roots = ScaledLinear(beta_start=0.00085, beta_end=0.012).betas().sqrt()
    assert roots[[0, -1]].tolist() == pytest.approx([0.00085**0.5, 0.012**0.5])
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(999))


def test_cosine_equals_its_formula_where_beta_is_not_clipped():
    t = torch.arange(0, 990, dtype=torch.float64) / 1000
    alpha, _ = Cosine().coefficients(t)
    expected = [
        math.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        for x in t.tolist()
    ]
    torch.testing.assert_close(alpha**2, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_sigmoid_equals_its_formula_where_beta_is_not_clipped():
    def g(x):
        return 1 / (1 + math.exp(-(-3 + 6 * x)))

    alpha, _ = Sigmoid().coefficients(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    expected = [(g(1) - g(x)) / (g(1) - g(0)) for x in (0.1, 0.5, 0.9)]
    assert (alpha**2).tolist() == pytest.approx(expected)
    assert alpha[1].item() ** 2 == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=repr)
def test_variance_preserving_schedules_preserve_variance(schedule):
    alpha, sigma = schedule.coefficients(GRID)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(GRID))


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_the_path_starts_at_data_and_its_noise_only_grows(schedule):
    alpha, sigma = schedule.coefficients(GRID)
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert (alpha.diff() < 0).all() or isinstance(schedule, EDM)
    assert (sigma.diff() > 0).all()


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_the_time_of_a_noise_level_is_the_time_that_has_it(schedule):
    alpha, sigma = schedule.coefficients(GRID)
    torch.testing.assert_close(schedule.time_at(sigma / alpha), GRID, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ZERO_SNR, ids=repr)
def test_zero_terminal_snr_leaves_nothing_at_the_end_and_the_first_step_as_it_was(schedule):
    plain = type(schedule)()
    alpha, sigma = schedule.coefficients(GRID)
    assert (alpha[-1], sigma[-1]) == (0, 1)
    assert schedule.ends_in_noise
    assert not plain.ends_in_noise
    torch.testing.assert_close(alpha[1], plain.coefficients(GRID)[0][1])


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=repr)
def test_sigma_near_zero_is_exact_in_float32(schedule):
    t = torch.tensor([1e-4, 1e-3, 1e-2])
    _, low = schedule.coefficients(t)
    _, high = schedule.coefficients(t.double())
    torch.testing.assert_close(low.double(), high, rtol=1e-5, atol=0)


def test_edm_has_its_smallest_level_at_its_smallest_time():
    _, sigma = EDM().coefficients(torch.tensor([EDM().smallest_time, 1.0], dtype=torch.float64))
    assert sigma.tolist() == pytest.approx([0.002, 80])


def test_shift_moves_the_middle_of_the_rectified_flow_to_more_noise():
    _, sigma = RectifiedFlow(shift=3.0).coefficients(torch.tensor([0.5]))
    assert sigma.item() == pytest.approx(0.75)


@pytest.mark.parametrize("shift", [0.1, 0.2, 0.7, 1.0, 3.0, 1.7, 9.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shifted_path_ends_in_nothing_but_noise_to_the_last_digit(shift, dtype):
    alpha, sigma = RectifiedFlow(shift).coefficients(torch.tensor([0.0, 1.0], dtype=dtype))
    assert alpha.tolist() == [1, 0]
    assert sigma.tolist() == [0, 1]
    assert RectifiedFlow(shift).ends_in_noise


def test_shift_auto_is_the_root_of_the_dimension_over_4096():
    assert RectifiedFlow("auto").for_dimension(4 * 16 * 16) == RectifiedFlow(0.5)
    assert RectifiedFlow("auto", base_dimension=256).for_dimension(4 * 16 * 16).shift == 2
    assert RectifiedFlow(2.0).for_dimension(1024) == RectifiedFlow(2.0)
    assert Linear().for_dimension(1024) == Linear()
    with pytest.raises(ValueError, match="depends on the size of the latent"):
        RectifiedFlow("auto").coefficients(GRID)


def test_edm_s_even_times_are_its_noise_levels_and_none_is_below_the_smallest():
    levels = EDM().coefficients(GRID)[1][1:]
    torch.testing.assert_close(levels[0], torch.tensor(0.002, dtype=torch.float64))
    roots = levels ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(999))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(steps=0), "steps: a whole number of 1 or more is needed, not 0"),
        (lambda: Linear(steps=10.0), "steps: a whole number is needed, not 10.0"),
        (lambda: Linear(steps=1, zero_terminal_snr=True), "steps: a whole number of 2 or more"),
        (lambda: Linear(zero_terminal_snr="yes"), "zero_terminal_snr: true or false is needed, not yes"),
        (lambda: Linear(beta_start="a"), "beta_start: a number is needed, not a"),
        (lambda: Linear(beta_end=1.5), "every beta must be above 0 and below 1"),
        (lambda: ScaledLinear(beta_start=-1.0), "every beta must be above 0 and below 1"),
        (lambda: Cosine(s=-1.0), "every beta must be above 0 and below 1"),
        (lambda: Sigmoid(tau=0.0), "every beta must be above 0 and below 1"),
        (lambda: EDM(sigma_min=90.0), r"sigma_min: .* not \(90\.0, 80\.0\)"),
        (lambda: EDM(sigma_min=0), "sigma_min: a number between 0 and sigma_max"),
        (lambda: EDM(rho=0), "rho: a finite number above 0 is needed, not 0"),
    ],
)
def test_settings_that_give_no_path_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shift", [0, -1.0, "large", True])
def test_other_shifts_are_refused(shift):
    with pytest.raises(ValueError, match="a positive number or auto is needed"):
        RectifiedFlow(shift)


def test_add_noise_gives_each_sample_its_own_time():
    x0, noise = torch.full((3, 2, 4, 4), 2.0), torch.full((3, 2, 4, 4), -1.0)
    xt = add_noise(RectifiedFlow(), x0, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert xt[:, 0, 0, 0].tolist() == pytest.approx([2.0, 1.25, -1.0])
