import math

import pytest
import torch

from ldmlab.errors import UserError
from ldmlab.metrics.inception_score import inception_score


def test_score_counts_the_classes_that_are_told_apart():
    certain = 1000 * torch.nn.functional.one_hot(torch.arange(4000) % 8).double()
    assert inception_score(certain).value == pytest.approx(8, rel=0.02)
    assert inception_score(torch.zeros(100, 8)).value == pytest.approx(1)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save")
def test_score_is_that_of_torchmetrics_and_of_torch_fidelity():
    logits = 2 * torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
    got = inception_score(logits, seed=3)
    from torchmetrics.image.inception import InceptionScore

    metric = InceptionScore(feature=torch.nn.Identity()).set_dtype(torch.float64)
    metric.update(logits.double())
    torch.manual_seed(3)
    mean, deviation = metric.compute()
    assert (got.value, got.deviation) == pytest.approx((mean.item(), deviation.item()), rel=1e-9)

    # torch-fidelity shuffles by another generator: the same images in the same splits give the same score
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    expected = isc.isc_features_to_metric(logits[order], shuffle=False)
    assert got.value == pytest.approx(expected["inception_score_mean"], rel=1e-4)


def test_score_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    inception_score(torch.zeros(40, 3))
    assert torch.equal(torch.rand(3), expected)


def test_too_few_images_for_ten_splits_are_refused():
    assert math.isfinite(inception_score(torch.zeros(20, 3)).value)
    with pytest.raises(UserError, match="20 or more"):
        inception_score(torch.zeros(19, 3))
