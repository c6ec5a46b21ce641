import math
import time
from types import SimpleNamespace

import pytest
import torch

from ldmlab.callbacks.budget import Budget, Cost, Limits, Stopwatch, step_flops


def test_the_first_limit_reached_decides():
    limits = Limits(steps=100, seconds=10)
    assert limits.used(Cost(steps=50, seconds=2)) == 0.5
    assert limits.used(Cost(steps=50, seconds=9)) == 0.9


def test_what_is_left_after_stage_one_is_less_in_every_unit():
    left = Limits(steps=100, cpu_seconds=60).less(Cost(steps=30, cpu_seconds=25, images=10))
    assert left == Limits(steps=70, cpu_seconds=35)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (Cost(steps=0), 0.1),
        (Cost(steps=9), 0.5 * (1 + math.cos(math.pi * 0.09))),
        (Cost(steps=50), 0.5),
        (Cost(steps=100), 0.0),
    ],
)
def test_the_rate_rises_then_falls_to_zero_over_the_budget(cost, expected):
    budget = Budget(Limits(steps=100), warmup_steps=10, decay=True)
    budget.cost = cost
    shown = budget.rate_factor()
    assert shown == pytest.approx(expected if cost.steps else 0.1, abs=1e-9)


def test_without_decay_the_rate_stays():
    budget = Budget(Limits(seconds=10), warmup_steps=1, decay=False)
    budget.cost = Cost(steps=5, seconds=9)
    assert budget.rate_factor() == 1


def test_a_stopwatch_leaves_out_what_is_paused():
    watch = Stopwatch()
    watch.start()
    time.sleep(0.02)
    with watch.paused():
        time.sleep(0.2)
    watch.stop()
    assert 0.02 <= watch.seconds < 0.15


def test_the_state_goes_on_where_it_was():
    a = Budget(Limits(seconds=10), 1, True)
    a.cost, a._flops_per_step = Cost(5, 50, 500, 4.0, 8.0), {"": 100.0}
    b = Budget(Limits(seconds=10), 1, True)
    b.load_state_dict(a.state_dict())
    assert b.cost == a.cost
    assert b.used == 0.4
    assert b.before == a.cost  # what follows is added to it


def test_flops_are_those_of_forward_and_backward_and_leave_no_trace():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 4, bias=False)

        def loss(self, batch):
            return self.layer(batch["image"] + torch.rand(())).sum()

    module = Module()
    state = torch.get_rng_state()
    # forward 2 * 3 * 8 * 4, and the same again for the weight's gradient; the input needs none
    assert step_flops(module, {"image": torch.ones(3, 8)}) == 2 * 2 * 3 * 8 * 4
    assert torch.equal(torch.get_rng_state(), state)
    assert module.layer.weight.grad is None


def test_what_was_spent_before_the_first_step_bends_no_schedule():
    budget = Budget(Limits(cpu_seconds=600), 0, decay=True, before=Cost(cpu_seconds=240))
    assert (budget.used, budget.rate_factor()) == (0, 1)
    budget.cost = Cost(cpu_seconds=420)
    assert budget.used == pytest.approx(0.5)
    budget.cost = Cost(cpu_seconds=600)
    assert budget.used == 1


def test_a_budget_that_ends_within_an_accumulation_ends_with_its_step():
    """Before it there is nothing to save, and a checkpoint is what a run ends with."""
    budget = Budget(Limits(images=3), 1, True)
    budget._flops_per_step = {"": 0.0}
    trainer = SimpleNamespace(global_step=0, world_size=1, should_stop=False)
    batch = {"image": torch.zeros(2, 3, 4, 4)}
    for _ in range(2):
        budget.on_train_batch_end(trainer, None, None, batch, 0)
    assert budget.used == 1
    assert not trainer.should_stop
    trainer.global_step = 1
    budget.on_train_batch_end(trainer, None, None, batch, 0)
    assert trainer.should_stop
