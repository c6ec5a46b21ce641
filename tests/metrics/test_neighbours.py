import numpy as np
import pytest
import torch
from features import features

from ldmlab.errors import UserError
from ldmlab.metrics import neighbours
from ldmlab.metrics.frechet import frechet_distance
from ldmlab.metrics.kernel import kernel_distance
from ldmlab.metrics.neighbours import precision_recall_density_coverage


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, precision_recall_density_coverage])
def test_distances_refuse_too_few_images_and_nan(distance):
    with pytest.raises(UserError, match="or more images"):
        distance(features(1), features(50))
    broken = features(50)
    broken[3, 3] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        distance(features(50), broken)


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
    monkeypatch.setattr(neighbours, "TILE", tile)
    real, generated = features(50, 8, seed=1), features(40, 8, seed=2, shift=0.3, scale=0.7)
    got = precision_recall_density_coverage(real, generated, ks=(3,))[3]
    expected = brute_force_prdc(real, generated, k=3)
    assert (got.precision, got.recall, got.density, got.coverage) == pytest.approx(expected)


def test_precision_and_recall_are_those_of_torch_fidelity():
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    real, generated = features(300, seed=1), features(200, seed=2, shift=0.3, scale=0.7)
    got = precision_recall_density_coverage(real, generated, ks=(3,))[3]
    expected = prc.calculate_precision_recall_full(generated.double(), real.double(), neighborhood=3)
    assert (got.precision, got.recall) == pytest.approx(expected)


def test_dropped_modes_cost_recall_and_coverage_but_not_precision():
    modes = torch.arange(4)[:, None] * 10.0
    real = torch.cat([features(60, 4, seed=s) + mode for s, mode in enumerate(modes)])
    generated = torch.cat([features(60, 4, seed=10 + s) + modes[0] for s in range(4)])
    got = precision_recall_density_coverage(real, generated)[5]
    assert got.precision > 0.8
    assert got.recall < 0.3
    assert got.coverage < 0.3


def test_density_is_about_one_for_equal_distributions():
    got = precision_recall_density_coverage(features(400, 4, seed=1), features(400, 4, seed=2))[5]
    assert got.density == pytest.approx(1, abs=0.1)
    assert got.coverage > 0.9


def test_density_and_coverage_are_those_of_the_prdc_package():
    prdc = pytest.importorskip("prdc")
    real, generated = features(300, seed=1), features(200, seed=2, shift=0.2, scale=0.8)
    for k, got in precision_recall_density_coverage(real, generated).items():
        expected = prdc.compute_prdc(real.double().numpy(), generated.double().numpy(), nearest_k=k)
        assert vars(got) == pytest.approx(expected)
