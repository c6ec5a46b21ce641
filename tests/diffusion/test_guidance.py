import pytest
import torch

from ldmlab.diffusion.guidance import ClassifierFree, NoGuidance
from ldmlab.diffusion.predictions import Prediction
from ldmlab.types import Conditioning

XT, T = torch.randn(3, 4, 2, 2), torch.full((3,), 0.5)
TOLD, NULL = Conditioning(vector=torch.ones(3, 1)), Conditioning(vector=torch.zeros(3, 1))


class Model:
    """Predicts x0 = xt + condition, so that the effect of guidance can be computed by hand."""

    def __init__(self):
        self.rows = 0

    def __call__(self, xt, t, conditioning):
        self.rows += len(xt)
        told = conditioning.vector[:, :, None, None]
        return Prediction(xt + told, xt - told)


def test_guidance_extrapolates_from_the_unconditional_model_in_all_channels():
    guided = ClassifierFree(3.0)(Model(), XT, T, TOLD, NULL)
    torch.testing.assert_close(guided.x0, XT + 3)
    torch.testing.assert_close(guided.noise, XT - 3)


@pytest.mark.parametrize("guidance", [ClassifierFree(1.0), NoGuidance(), ClassifierFree(4.0, start=0.6)], ids=repr)
def test_without_effect_guidance_is_the_conditional_model_and_costs_nothing(guidance):
    model = Model()
    torch.testing.assert_close(guidance(model, XT, T, TOLD, NULL).x0, XT + 1)
    assert model.rows == 3


def test_guidance_evaluates_twice_where_it_acts():
    model = Model()
    ClassifierFree(2.0, start=0.4, stop=0.6)(model, XT, T, TOLD, NULL)
    assert model.rows == 6
