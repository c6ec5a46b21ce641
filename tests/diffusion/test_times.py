import pytest
import torch

from ldmlab.diffusion.times import Discrete, LogitNormal, Uniform, stratified_uniform

CPU = torch.device("cpu")


def test_stratified_draws_have_one_in_every_bin():
    bins = (stratified_uniform(64, CPU) * 64).floor().long()
    assert sorted(bins.tolist()) == list(range(64))


def test_discrete_times_are_the_grid_without_zero_and_cover_it():
    steps = (Discrete(10)(1000, CPU) * 10).round()
    assert sorted(set(steps.tolist())) == list(range(1, 11))
    assert (steps / 10 - Discrete(10)(1000, CPU).sort().values[steps.argsort().argsort()]).abs().max() < 1e-6


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.8)])
def test_logit_normal_times_have_a_normal_logit(mean, std):
    logits = torch.logit(LogitNormal(mean, std)(20_000, CPU).double())
    assert logits.mean().item() == pytest.approx(mean, abs=0.01)
    assert logits.std().item() == pytest.approx(std, abs=0.01)


def test_uniform_times_stay_above_the_smallest():
    t = Uniform(smallest=0.1)(1000, CPU)
    assert t.min() >= 0.1
    assert t.max() <= 1
    assert t.mean().item() == pytest.approx(0.55, abs=0.005)
