import pytest
import torch
from features import features
from torchmetrics.image.kid import poly_mmd

from ldmlab.metrics import kernel
from ldmlab.metrics.kernel import kernel_distance


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
    monkeypatch.setattr(kernel, "TILE", tile)
    a, b = features(50, seed=1), features(50, seed=2, shift=0.3)
    whole = kernel_distance(a, b)
    assert whole.value == pytest.approx(poly_mmd(a.double(), b.double()).item(), rel=1e-10)
    monkeypatch.setattr(kernel, "TILE", 10**6)
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


def test_kernel_distance_is_that_of_torch_fidelity():
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    a, b = features(80, seed=1), features(80, seed=2, shift=0.2)
    # one subset of all images: torch-fidelity's mean over subsets has nothing left to draw
    options = {"kid_subsets": 1, "kid_subset_size": 80, "kid_kernel": "poly", "verbose": False}
    expected = kid.kid_features_to_metric(a, b, **options)["kernel_inception_distance_mean"]
    assert kernel_distance(a, b).value == pytest.approx(expected, rel=1e-4)
