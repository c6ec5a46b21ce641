import math

import pytest
import torch

from ldmlab.diffusion.schedules import Cosine, Linear, RectifiedFlow, add_noise

VARIANCE_PRESERVING = [Linear(), Cosine(), Linear(steps=10, beta_end=0.5)]
GRID = torch.linspace(0, 1, 1001, dtype=torch.float64)


def test_linear_equals_the_product_of_one_minus_beta_on_its_grid():
    expected, product = [], 1.0
    for k in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * k / 999)
        expected.append(product)
    alpha, _ = Linear().coefficients(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(alpha**2, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)


def test_cosine_equals_its_formula_where_beta_is_not_clipped():
    t = torch.arange(0, 990, dtype=torch.float64) / 1000
    alpha, _ = Cosine().coefficients(t)
    expected = [
        math.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        for x in t.tolist()
    ]
    torch.testing.assert_close(alpha**2, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=repr)
def test_variance_preserving_schedules_preserve_variance(schedule):
    alpha, sigma = schedule.coefficients(GRID)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(GRID))


@pytest.mark.parametrize("schedule", [*VARIANCE_PRESERVING, RectifiedFlow(), RectifiedFlow(shift=3.0)], ids=repr)
def test_the_path_starts_at_data_and_its_noise_only_grows(schedule):
    alpha, sigma = schedule.coefficients(GRID)
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=repr)
def test_sigma_near_zero_is_exact_in_float32(schedule):
    t = torch.tensor([1e-4, 1e-3, 1e-2])
    _, low = schedule.coefficients(t)
    _, high = schedule.coefficients(t.double())
    torch.testing.assert_close(low.double(), high, rtol=1e-5, atol=0)


def test_shift_moves_the_middle_of_the_rectified_flow_to_more_noise():
    _, sigma = RectifiedFlow(shift=3.0).coefficients(torch.tensor([0.5]))
    assert sigma.item() == pytest.approx(0.75)


def test_add_noise_gives_each_sample_its_own_time():
    x0, noise = torch.full((3, 2, 4, 4), 2.0), torch.full((3, 2, 4, 4), -1.0)
    xt = add_noise(RectifiedFlow(), x0, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert xt[:, 0, 0, 0].tolist() == pytest.approx([2.0, 1.25, -1.0])
