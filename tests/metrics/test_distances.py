import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from ldmlab.errors import UserError
from ldmlab.metrics import distances
from ldmlab.metrics.distances import (
    frechet_distance,
    frechet_distance_of_gaussians,
    gaussian_statistics,
    kernel_distance,
    precision_recall_density_coverage,
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def features(count, dimensions=16, seed=0, shift=0.0, scale=1.0):
    """Correlated, skewed and positive, as pooled activations are."""
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99)) / dimensions**0.5
    raw = torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))
    return (raw @ mixing * scale + shift).clamp(min=-0.5) + 0.5


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
        mean_a, rotation @ a.diag() @ rotation.T, mean_b, rotation @ b.diag() @ rotation.T
    )
    assert got == pytest.approx(30 + float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-7)


def test_frechet_of_covariances_that_do_not_commute_is_scipys():
    (mean_a, a), (mean_b, b) = (gaussian_statistics(features(200, seed=s, scale=s)) for s in (1, 2))
    root = scipy.linalg.sqrtm(a.numpy() @ b.numpy()).real
    expected = (mean_a - mean_b).square().sum().item() + np.trace(a.numpy() + b.numpy() - 2 * root)
    assert frechet_distance_of_gaussians(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-8)


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
    assert abs(frechet_distance(a, a)) < 1e-6 * gaussian_statistics(a)[1].trace()


def test_frechet_is_symmetric_when_one_side_has_few_images():
    a, b = features(8, dimensions=64, seed=1), features(500, dimensions=64, seed=2)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, precision_recall_density_coverage])
def test_distances_refuse_too_few_images_and_nan(distance):
    with pytest.raises(UserError, match="or more images"):
        distance(features(1), features(50))
    broken = features(50)
    broken[3, 3] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        distance(features(50), broken)


def test_kernel_distance_equals_the_mean_over_random_subsets():
    a, b = features(200, seed=1), features(300, seed=2, shift=0.1)
    generator = torch.Generator().manual_seed(0)
    subsets = torch.stack(
        [
            poly_mmd(
                a.double()[torch.randperm(200, generator=generator)[:50]],
                b.double()[torch.randperm(300, generator=generator)[:50]],
            )
            for _ in range(2000)
        ]
    )
    spread = subsets.std() / len(subsets) ** 0.5
    assert abs(kernel_distance(a, b).value - subsets.mean()) < 3 * spread


@pytest.mark.parametrize("tile", [7, 2048])
def test_kernel_distance_is_that_of_torchmetrics_whatever_the_tiles(tile, monkeypatch):
    monkeypatch.setattr(distances, "TILE", tile)
    a, b = features(50, seed=1), features(50, seed=2, shift=0.3)
    whole = kernel_distance(a, b)
    assert whole.value == pytest.approx(poly_mmd(a.double(), b.double()).item(), rel=1e-10)
    monkeypatch.setattr(distances, "TILE", 10**6)
    assert whole.standard_error == pytest.approx(kernel_distance(a, b).standard_error, rel=1e-9)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.95, 1.35), (0.02, 0.95, 1.35), (0.3, 0.9, 1.1)])
@pytest.mark.parametrize(("n", "m"), [(100, 100), (60, 240)])
def test_standard_error_is_the_spread_over_fresh_samples(shift, low, high, n, m):
    # equal distributions, where only the second order counts, to far ones, where the first does
    results = [kernel_distance(features(n, seed=2 * s), features(m, seed=2 * s + 1, shift=shift)) for s in range(300)]
    spread = torch.tensor([r.value for r in results]).std().item()
    claimed = torch.tensor([r.standard_error for r in results]).square().mean().sqrt().item()
    assert low < claimed / spread < high


def test_kernel_distance_of_one_distribution_is_within_three_standard_errors_of_zero():
    results = [kernel_distance(features(150, seed=s), features(150, seed=s + 1000)) for s in range(100)]
    scores = torch.tensor([r.value / r.standard_error for r in results])
    assert (scores.abs() < 3).float().mean() > 0.95
    assert abs(scores.mean()) < 0.5  # unbiased, though FD of the same sets is far above 0


def test_kernel_distance_sees_a_shift():
    result = kernel_distance(features(300, seed=1), features(300, seed=2, shift=0.3))
    assert result.value > 5 * result.standard_error


def brute_force_prdc(real, generated, k):
    """The definitions, one ball at a time."""
    real, generated = real.double().numpy(), generated.double().numpy()

    def radius(points, i):
        return np.sort(np.linalg.norm(points - points[i], axis=1))[k]

    in_real = np.array([[np.linalg.norm(x - y) <= radius(real, i) for y in generated] for i, x in enumerate(real)])
    in_generated = np.array(
        [[np.linalg.norm(x - y) <= radius(generated, j) for x in real] for j, y in enumerate(generated)]
    )
    return in_real.any(0).mean(), in_generated.any(0).mean(), in_real.sum(0).mean() / k, in_real.any(1).mean()


@pytest.mark.parametrize("tile", [16, 2048])
def test_precision_recall_density_coverage_are_their_definitions(tile, monkeypatch):
    monkeypatch.setattr(distances, "TILE", tile)
    real, generated = features(50, 8, seed=1), features(40, 8, seed=2, shift=0.3, scale=0.7)
    got = precision_recall_density_coverage(real, generated, k=3)
    expected = brute_force_prdc(real, generated, k=3)
    assert (got.precision, got.recall, got.density, got.coverage) == pytest.approx(expected)


def test_precision_and_recall_are_those_of_torch_fidelity():
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    real, generated = features(300, seed=1), features(200, seed=2, shift=0.3, scale=0.7)
    got = precision_recall_density_coverage(real, generated, k=3)
    expected = prc.calculate_precision_recall_full(generated.double(), real.double(), neighborhood=3)
    assert (got.precision, got.recall) == pytest.approx(expected)


def test_dropped_modes_cost_recall_and_coverage_but_not_precision():
    modes = torch.arange(4)[:, None] * 10.0
    real = torch.cat([features(60, 4, seed=s) + mode for s, mode in enumerate(modes)])
    generated = torch.cat([features(60, 4, seed=10 + s) + modes[0] for s in range(4)])
    got = precision_recall_density_coverage(real, generated, k=5)
    assert got.precision > 0.8
    assert got.recall < 0.3
    assert got.coverage < 0.3


def test_density_is_about_one_for_equal_distributions():
    got = precision_recall_density_coverage(features(400, 4, seed=1), features(400, 4, seed=2), k=5)
    assert got.density == pytest.approx(1, abs=0.1)
    assert got.coverage > 0.9
