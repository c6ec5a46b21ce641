import math

import pytest
import torch

from ldmlab.diffusion.schedules import EDM, Linear, RectifiedFlow
from ldmlab.diffusion.times import (
    Discrete,
    ImportanceSampled,
    LogitNormal,
    LogNormal,
    Mode,
    Uniform,
    stratified_uniform,
)

CPU = torch.device("cpu")
PATH = RectifiedFlow()


def test_stratified_draws_have_one_in_every_bin():
    bins = (stratified_uniform(64, CPU) * 64).floor().long()
    assert sorted(bins.tolist()) == list(range(64))


def test_discrete_times_are_the_grid_without_zero_and_cover_it():
    steps = (Discrete(10)(1000, PATH, CPU) * 10).round()
    assert sorted(set(steps.tolist())) == list(range(1, 11))
    assert all((steps == k).sum() == 100 for k in range(1, 11))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.8)])
def test_logit_normal_times_have_a_normal_logit(mean, std):
    logits = torch.logit(LogitNormal(mean, std)(20_000, PATH, CPU).double())
    assert logits.mean().item() == pytest.approx(mean, abs=0.01)
    assert logits.std().item() == pytest.approx(std, abs=0.01)


def test_uniform_times_stay_above_the_smallest():
    t = Uniform(smallest=0.1)(1000, PATH, CPU)
    assert t.min() >= 0.1
    assert t.max() <= 1
    assert t.mean().item() == pytest.approx(0.55, abs=0.005)


@pytest.mark.parametrize("schedule", [EDM(), Linear(), RectifiedFlow()], ids=lambda schedule: type(schedule).__name__)
def test_log_normal_noise_levels_are_log_normal_on_any_path(schedule):
    t = LogNormal(-0.5, 1.0)(20_000, schedule, CPU)
    alpha, sigma = schedule.coefficients(t.double())
    logs = (sigma / alpha).log()
    assert logs.mean().item() == pytest.approx(-0.5, abs=0.02)
    assert logs.std().item() == pytest.approx(1.0, abs=0.02)


def test_log_normal_times_stay_within_the_schedule():
    t = LogNormal(0.0, 20.0)(1000, EDM(), CPU)
    assert t.min().item() == pytest.approx(EDM().smallest_time)
    assert t.max() == 1


def test_mode_times_have_the_density_of_their_paper():
    # the density is |du/dt|, the derivative of the inverse of eq. 20: compare shares of times below t(u) with 1 - u
    scale = 1.29
    t = Mode(scale, smallest=1e-6)(50_000, PATH, CPU).double()
    for u in (0.1, 0.3, 0.5, 0.8):
        at = 1 - u - scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u)
        assert (t < at).double().mean().item() == pytest.approx(1 - u, abs=0.002)
    uniform = Mode(0.0)(1000, PATH, CPU)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mode(scale=2.0), r"scale: a number from -1 to 1\.752 is needed, not 2"),  # times would run back
        (lambda: Mode(smallest=2), "smallest: a time between 0 and 1 is needed, not 2"),
        (lambda: Uniform(smallest=0.0), "smallest: a time between 0 and 1"),
        (lambda: Discrete(0), "steps: a whole number of 1 or more is needed, not 0"),
        (lambda: LogitNormal(std="a"), "std: a number is needed, not a"),
        (lambda: LogNormal(std=0.0), "std: a finite number above 0"),
        (lambda: LogNormal(mean=math.inf), "mean: a finite number is needed, not inf"),
        (lambda: ImportanceSampled(history=0), "history: a whole number of 1 or more is needed, not 0"),
        (lambda: ImportanceSampled(steps=1.5), "steps: a whole number of 1 or more is needed, not 1.5"),
        (lambda: ImportanceSampled(uniform_share=2), "uniform_share: a number from 0 to 1"),
    ],
)
def test_settings_that_give_no_times_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def filled(sizes):
    """Importance sampling over len(sizes) steps whose losses so far are all `sizes`."""
    times = ImportanceSampled(steps=len(sizes), history=3, uniform_share=0.0)
    steps = torch.arange(1, len(sizes) + 1) / len(sizes)
    for _ in range(3):
        times.update(steps, torch.tensor(sizes))
    return times


def test_importance_sampling_is_uniform_until_every_step_was_seen_often_enough():
    times = ImportanceSampled(steps=4, history=3)
    assert times.probabilities().tolist() == [0.25] * 4
    assert times.weight(torch.tensor([0.25, 1.0])).tolist() == [1, 1]
    for _ in range(3):
        times.update(torch.tensor([0.25, 0.5, 0.75]), torch.tensor([1.0, 2.0, 3.0]))
    assert times.probabilities().tolist() == [0.25] * 4


def test_importance_sampling_draws_in_proportion_to_the_losses_and_weights_them_back():
    times = filled([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(times.probabilities(), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    t = times(10_000, Linear(steps=4), CPU)
    shares = [(t == k / 4).float().mean().item() for k in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.001)
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])[(t * 4).long() - 1]
    assert (times.weight(t) * losses).mean().item() == pytest.approx(2.5, abs=1e-3)  # the mean over uniform times


def test_importance_sampling_remembers_a_step_that_is_drawn_twice_in_a_batch_twice():
    times = ImportanceSampled(steps=2, history=3)
    times.update(torch.tensor([0.5, 1.0, 0.5]), torch.tensor([1.0, 2.0, 3.0]))
    assert times.losses.tolist() == [[1, 3, 0], [2, 0, 0]]
    assert times.seen.tolist() == [2, 1]


def test_importance_sampling_forgets_old_losses_and_resumes_from_its_state():
    times = filled([1.0, 1.0])
    times.update(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([3.0, 3.0, 3.0]))
    torch.testing.assert_close(times.probabilities(), torch.tensor([0.75, 0.25]))
    resumed = ImportanceSampled(steps=2, history=3, uniform_share=0.0)
    resumed.load_state_dict(times.state_dict())
    torch.testing.assert_close(resumed.probabilities(), times.probabilities())
