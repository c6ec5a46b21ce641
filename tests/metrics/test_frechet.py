import numpy as np
import pytest
import scipy.linalg
import torch
from features import features
from torchmetrics.image.fid import FrechetInceptionDistance

from ldmlab.errors import UserError
from ldmlab.metrics.frechet import (
    Gaussian,
    frechet_distance,
    frechet_distance_infinity,
    frechet_distance_of_gaussians,
    images_for_infinity,
)


class Identity(torch.nn.Module):
    """Stands in for torchmetrics' Inception: "images" that are features already."""

    num_features = 16

    def forward(self, x):
        return x.flatten(1)


def test_frechet_of_two_gaussians_has_its_closed_form():
    # commuting covariances: |m - n|² + sum (sqrt a - sqrt b)²
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    a, b = torch.tensor([1.0, 2, 3, 4, 0]).double(), torch.tensor([4.0, 2, 0, 1, 9]).double()
    mean_a, mean_b = torch.zeros(5), torch.arange(5.0)
    got = frechet_distance_of_gaussians(
        Gaussian(mean_a, rotation @ a.diag() @ rotation.T), Gaussian(mean_b, rotation @ b.diag() @ rotation.T)
    )
    assert got == pytest.approx(30 + float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-7)


def test_frechet_of_covariances_that_do_not_commute_is_scipys():
    p, q = (Gaussian.fitted(features(200, seed=s, scale=s)) for s in (1, 2))
    a, b = p.covariance.numpy(), q.covariance.numpy()
    root = scipy.linalg.sqrtm(a @ b).real
    expected = (p.mean - q.mean).square().sum().item() + np.trace(a + b - 2 * root)
    assert frechet_distance_of_gaussians(p, q) == pytest.approx(expected, rel=1e-8)


def test_frechet_is_that_of_torchmetrics_and_of_torch_fidelity():
    a, b = features(300, seed=1), features(200, seed=2, shift=0.2)
    got = frechet_distance(a, b)
    metric = FrechetInceptionDistance(feature=Identity(), input_img_size=(16, 1, 1))
    metric.set_dtype(torch.float64)
    metric.update(a.double()[:, :, None, None], real=True)
    metric.update(b.double()[:, :, None, None], real=False)
    assert got == pytest.approx(metric.compute().item(), rel=1e-4)

    fid = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [fid.fid_features_to_statistics(x) for x in (a, b)]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert got == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("count", [10, 300])
def test_frechet_of_a_set_to_itself_is_zero(count):
    # 10 images in 16 dimensions: a singular covariance
    a = features(count)
    assert abs(frechet_distance(a, a)) < 1e-6 * Gaussian.fitted(a).covariance.trace()


def test_frechet_is_symmetric_when_one_side_has_few_images():
    a, b = features(8, dimensions=64, seed=1), features(500, dimensions=64, seed=2)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_extrapolation_takes_away_the_bias_of_few_images():
    # two sets of one distribution: the truth is 0, and the distance itself is far from it
    pairs = [(features(60, seed=2 * s), features(60, seed=2 * s + 1)) for s in range(40)]
    plain = torch.tensor([frechet_distance(a, b) for a, b in pairs]).mean()
    limits = torch.tensor([frechet_distance_infinity(a, b, seed=s).value for s, (a, b) in enumerate(pairs)])
    assert abs(limits.mean()) < plain / 5


def test_extrapolation_of_different_sets_is_their_distance():
    a, b = features(20_000, seed=1), features(20_000, seed=2, shift=0.5)
    few = torch.tensor([frechet_distance_infinity(a[:400], b[s : s + 400], seed=s).value for s in range(0, 4000, 400)])
    assert few.mean() == pytest.approx(frechet_distance(a, b), rel=0.05)


def test_extrapolation_is_repeatable_and_says_what_it_was_fitted_to():
    a, b = features(100, seed=1), features(80, seed=2)
    first, second = (frechet_distance_infinity(a, b, points=5) for _ in range(2))
    assert first == second
    assert first.sizes == [40, 50, 60, 70, 80]
    assert first.standard_error > 0


def test_too_few_images_are_not_extrapolated_from():
    least = images_for_infinity(16)
    with pytest.raises(UserError, match=f"needs {least} or more"):
        frechet_distance_infinity(features(least), features(least - 1))
