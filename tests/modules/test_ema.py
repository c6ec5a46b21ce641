import pytest
import torch
from torch import nn

from ldmlab.modules.ema import PowerEMA


def trajectory(steps):
    """A one-weight model whose weight is the number of the step."""
    model = nn.Linear(1, 1, bias=False)
    ema = PowerEMA(model, gamma=3.0)
    for step in range(1, steps + 1):
        nn.init.constant_(model.weight, float(step))
        ema.update(model)
    return ema.average.weight.item()


def test_after_one_step_nothing_is_left_of_the_initial_weights():
    assert trajectory(1) == 1.0


def test_the_average_weighs_step_s_by_its_power():
    # Karras et al. 2024, eq. 123: the weight of step s is proportional to s^gamma, so the mean is (gamma+1)/(gamma+2)
    assert trajectory(5000) / 5000 == pytest.approx(4 / 5, rel=1e-3)


def test_the_average_stays_frozen_and_in_evaluation_mode():
    ema = PowerEMA(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), gamma=3.0)
    ema.train()
    assert not ema.average.training
    assert not any(p.requires_grad for p in ema.parameters())


def test_the_state_holds_average_and_step():
    model = nn.Linear(2, 2)
    a, b = PowerEMA(model, 3.0), PowerEMA(model, 3.0)
    for _ in range(3):
        torch.nn.init.normal_(model.weight)
        a.update(model)
    b.load_state_dict(a.state_dict())
    assert b.step.item() == 3
    assert torch.equal(a.average.weight, b.average.weight)
