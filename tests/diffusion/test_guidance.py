import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldmlab.diffusion.guidance import Autoguidance, ClassifierFree, NoGuidance, spread
from ldmlab.diffusion.predictions import Prediction

XT, T = torch.randn(3, 4, 2, 2), torch.full((3,), 0.5)


class Model:
    """Predicts x0 = xt + 1 under its conditions, xt without, xt - 1 if it is the guide; on the straight path."""

    def __init__(self):
        self.rows, self.passes = 0, 0

    def at(self, offset, xt, t):
        self.rows += len(xt)
        self.passes += 1
        return self.with_x0(xt + offset, xt, t)

    def conditional(self, xt, t):
        return self.at(1, xt, t)

    def both(self, xt, t, batched):
        told, null = self.at(1, xt, t), self.at(0, xt, t)
        self.passes -= batched
        return told, null

    def weaker(self, guide, xt, t):
        assert guide == "a weaker model"
        return self.at(-1, xt, t)

    def with_x0(self, x0, xt, t):
        return Prediction.from_x0(x0, xt, 1 - t, t)


def autoguidance(**options):
    return Autoguidance(guide="a weaker model", **options)


def test_guidance_extrapolates_from_the_unconditional_model_in_all_channels():
    guided = ClassifierFree(3.0)(Model(), XT, T)
    torch.testing.assert_close(guided.x0, XT + 3)
    assert_consistent(guided)


def assert_consistent(prediction):
    """x0 and noise give xt again."""
    torch.testing.assert_close(0.5 * prediction.x0 + 0.5 * prediction.noise, XT)


def test_autoguidance_extrapolates_from_the_guide():
    guided = autoguidance(scale=1.5)(Model(), XT, T)
    torch.testing.assert_close(guided.x0, XT + 2)
    assert_consistent(guided)


@pytest.mark.parametrize(
    "guidance",
    [
        ClassifierFree(1.0),
        ClassifierFree(1.0, rescale=0.7),
        NoGuidance(),
        ClassifierFree(4.0, start=0.6),
        autoguidance(scale=1),
        autoguidance(scale=3.0, stop=0.4),
    ],
    ids=repr,
)
def test_without_effect_guidance_is_the_conditional_model_and_costs_nothing(guidance):
    model = Model()
    torch.testing.assert_close(guidance(model, XT, T).x0, XT + 1)
    assert model.rows == 3


@given(scale=st.floats(-2, 20), rescale=st.floats(0, 1), start=st.floats(0, 1), stop=st.floats(0, 1))
def test_whatever_its_settings_guidance_gives_x0_and_noise_that_fit_together(scale, rescale, start, stop):
    guided = ClassifierFree(scale, start, stop, rescale)(Model(), XT, T)
    assert torch.isfinite(guided.x0).all()
    torch.testing.assert_close(0.5 * guided.x0 + 0.5 * guided.noise, XT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batched", "passes"), [(True, 1), (False, 2)])
def test_guidance_evaluates_twice_where_it_acts_in_one_pass_or_two(batched, passes):
    model = Model()
    ClassifierFree(2.0, start=0.4, stop=0.6, batched=batched)(model, XT, T)
    assert (model.rows, model.passes) == (6, passes)


def test_rescale_brings_the_spread_of_x0_back():
    class Contrasty(Model):
        def both(self, xt, t, batched):
            return self.with_x0(2 * xt, xt, t), self.with_x0(xt, xt, t)

    plain, half, whole = (ClassifierFree(5.0, rescale=phi)(Contrasty(), XT, T) for phi in (0.0, 0.5, 1.0))
    torch.testing.assert_close(plain.x0, 6 * XT)
    torch.testing.assert_close(spread(whole.x0), spread(2 * XT))
    torch.testing.assert_close(half.x0, (plain.x0 + whole.x0) / 2)
    assert_consistent(whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierFree("strong"), r"^scale: a number is needed, not strong"),
        (lambda: ClassifierFree(rescale=2.0), r"^rescale: a number from 0 to 1 is needed, not 2"),
        (lambda: Autoguidance(), r"^guide: the folder of a weaker run"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("stop", [0.2, 0.3, 0.6, 0.8])
def test_the_ends_of_the_interval_belong_to_it_though_times_are_rounded(stop):
    model = Model()
    ClassifierFree(2.0, stop=stop)(model, XT, torch.full((3,), stop))
    assert model.rows == 6
    model = Model()
    ClassifierFree(2.0, start=stop)(model, XT, torch.full((3,), stop))
    assert model.rows == 6


def test_guidance_acts_where_churn_leads_beyond_the_end_of_the_path():
    model = Model()
    ClassifierFree(2.0)(model, XT, torch.full((3,), 1.05))
    assert model.rows == 6
