import hashlib

import numpy as np
import pytest
import torch
from features import features

from ldmlab.errors import UserError
from ldmlab.metrics.extractors import FeatureExtractor, Features
from ldmlab.metrics.frechet import frechet_distance
from ldmlab.metrics.references import Reference, read_npz
from ldmlab.metrics.suite import compare_with


class Thumbnails(FeatureExtractor):
    """Features that a test can follow: 4 x 4 thumbnails, and their red as what is where."""

    name, dimensions, input_size, resize, hash = "thumbnail_4", 48, 4, "area", "none"

    def __init__(self, spatial=True, classes=True):
        super().__init__(torch.nn.Identity(), batch_size=8)
        self.spatial, self.classes = spatial, classes

    def _features(self, images):
        small = torch.nn.functional.adaptive_avg_pool2d(images.float(), 4)
        return Features(small.flatten(1), small[:, 0].flatten(1) if self.spatial else None)

    def logits(self, pooled):
        return pooled[:, :10] / 50 if self.classes else None


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def reference(count=60, seed=0, judge=None):
    return Reference("real", count, "hash", (judge or Thumbnails())(images(count, seed)))


def adm_file(path, dimensions=48, count=None, spatial=16):
    """A file as ADM publishes them."""
    judge = Thumbnails()
    real = judge(images(100))
    rng = np.random.default_rng(0)
    arrays = {"mu": rng.normal(size=dimensions), "sigma": np.eye(dimensions)}
    if dimensions == 48:
        gaussian = Reference("r", 100, "h", real)
        arrays = {"mu": gaussian.pooled.mean.numpy(), "sigma": gaussian.pooled.covariance.numpy()}
        arrays |= {"mu_s": gaussian.spatial.mean.numpy(), "sigma_s": gaussian.spatial.covariance.numpy()}
    if count:
        arrays["arr_0"] = images(count, seed=7).permute(0, 2, 3, 1).numpy()
    np.savez(path, **arrays)
    return path


def test_statistics_alone_give_the_frechet_distances_and_nothing_that_needs_images(tmp_path):
    found = read_npz(adm_file(tmp_path / "set.npz"), Thumbnails(), 8)
    assert (found.title, found.samples, found.features) == ("set", None, None)
    assert found.hash == hashlib.sha256((tmp_path / "set.npz").read_bytes()).hexdigest()[:32]
    samples = Thumbnails()(images(50, seed=3))
    got = compare_with(found, samples, Thumbnails())
    assert set(got) == {"fd_thumbnail_4", "sfd_thumbnail_4", "is_thumbnail_4"}
    real = Thumbnails()(images(100))
    assert got["fd_thumbnail_4"].value == pytest.approx(frechet_distance(real.pooled, samples.pooled), rel=1e-9)
    assert got["sfd_thumbnail_4"].value == pytest.approx(frechet_distance(real.spatial, samples.spatial), rel=1e-9)


def test_images_beside_statistics_serve_what_needs_images_only(tmp_path):
    # ADM's FID is to mu and sigma, its precision and recall to the 10,000 images of the same file
    judge, samples = Thumbnails(), Thumbnails()(images(50, seed=3))
    both = compare_with(read_npz(adm_file(tmp_path / "both.npz", count=30), judge, 8), samples, judge)
    alone = compare_with(read_npz(adm_file(tmp_path / "alone.npz"), judge, 8), samples, judge)
    assert both["fd_thumbnail_4"].value == alone["fd_thumbnail_4"].value
    from_images = compare_with(reference(30, seed=7), samples, judge)
    for name in ("kid_thumbnail_4", "recall_k3_thumbnail_4"):
        assert both[name].value == from_images[name].value


def test_images_alone_are_a_reference_for_any_extractor(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=images(30, seed=7).permute(0, 2, 3, 1).numpy())
    found = read_npz(tmp_path / "images.npz", Thumbnails(), 8)
    assert found.samples == 30
    torch.testing.assert_close(found.pooled.mean, reference(30, seed=7).pooled.mean)


def test_what_is_written_is_read_again(tmp_path):
    original = reference()
    manifest = {**Thumbnails().manifest(), "reference": "shapes/val", "reference_samples": 60}
    path = original.write_npz(tmp_path / "own", manifest)
    assert path == tmp_path / "own.npz"
    again = read_npz(path, Thumbnails(), 8)
    assert (again.samples, again.made_of) == (60, "shapes/val")
    torch.testing.assert_close(again.pooled.covariance, original.pooled.covariance, rtol=0, atol=0)
    torch.testing.assert_close(again.spatial.mean, original.spatial.mean, rtol=0, atol=0)
    other = Thumbnails()
    other.input_size = 8
    with pytest.raises(UserError, match="was made with input_size 4, this run has 8"):
        read_npz(path, other, 8)


def test_statistics_of_other_features_and_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"of 2048 features, thumbnail_4 has 48; .* metrics/features=inception"):
        read_npz(adm_file(tmp_path / "inception.npz", dimensions=2048), Thumbnails(), 8)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="neither statistics"):
        read_npz(tmp_path / "other.npz", Thumbnails(), 8)
    (tmp_path / "text.npz").write_text("nothing")
    with pytest.raises(UserError, match=r"no readable \.npz"):
        read_npz(tmp_path / "text.npz", Thumbnails(), 8)
    with pytest.raises(UserError, match="cannot read"):
        read_npz(tmp_path / "absent.npz", Thumbnails(), 8)
    np.savez(tmp_path / "shape.npz", mu=np.zeros(48), sigma=np.zeros((48, 4)))
    with pytest.raises(UserError, match="no mean and covariance"):
        read_npz(tmp_path / "shape.npz", Thumbnails(), 8)
    np.savez(tmp_path / "small.npz", arr_0=images(20).permute(0, 2, 3, 1).numpy())
    with pytest.raises(UserError, match=r"of 8 x 8 pixels, the data of 16 x 16"):
        read_npz(tmp_path / "small.npz", Thumbnails(), 16)
    with pytest.raises(UserError, match="cannot be part of a metric's name"):
        read_npz(adm_file(tmp_path / "val.npz"), Thumbnails(), 8)
    for name, content in (("empty", b""), ("cut", (tmp_path / "small.npz").read_bytes()[:300])):
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"no readable \.npz"):
            read_npz(tmp_path / f"{name}.npz", Thumbnails(), 8)
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(UserError, match=r"no readable \.npz"):
        read_npz(tmp_path / "array.npz", Thumbnails(), 8)


FOUR = ("precision", "recall", "density", "coverage")


def test_the_suite_measures_all_that_can_be_had_under_the_features_name():
    judge = Thumbnails()
    got = compare_with(reference(200), judge(images(180, seed=1)), judge)
    expected = {"kid", "fd", "sfd", "fdinf", "is", *(f"{name}_k{k}" for name in FOUR for k in (3, 5))}
    assert set(got) == {f"{name}_thumbnail_4" for name in expected}
    assert got["kid_thumbnail_4"].standard_error > 0
    assert got["is_thumbnail_4"].how["splits"] == 10


def test_the_suite_leaves_out_what_means_nothing_with_so_few_images_or_such_features():
    judge = Thumbnails(spatial=False, classes=False)
    got = compare_with(reference(60, judge=judge), judge(images(60, seed=1)), judge)
    assert {name.split("_")[0] for name in got} == {"kid", "fd", *FOUR}
    judge = Thumbnails()
    few = compare_with(reference(12), judge(images(12, seed=1)), judge)
    assert not {"is_thumbnail_4", "fdinf_thumbnail_4"} & set(few)


def test_only_what_is_wanted_is_measured():
    judge = Thumbnails()
    assert set(compare_with(reference(), judge(images(60)), judge, ["kid"])) == {"kid_thumbnail_4"}


def test_the_whole_way_from_images_equals_torch_fidelitys_on_the_same_features():
    """Fréchet and kernel distance, Inception score, precision and recall, by torch-fidelity's own pipeline."""
    fidelity = pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    judge = Thumbnails()

    class Registered(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        def forward(self, x):
            pooled = judge(x).pooled
            both = {"pooled": pooled, "logits": judge.logits(pooled)}
            return tuple(both[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list():
            return "pooled", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return {"isc": "logits"}.get(metric, "pooled")

    fidelity.register_feature_extractor("thumbnails", Registered)
    real, made = images(80, seed=1), images(80, seed=2)

    class Data(torch.utils.data.Dataset):
        def __init__(self, x):
            self.x = x

        def __len__(self):
            return len(self.x)

        def __getitem__(self, row):
            return self.x[row]

    theirs = fidelity.calculate_metrics(
        input1=Data(made), input2=Data(real), feature_extractor="thumbnails", cuda=False, verbose=False, cache=False,
        fid=True, kid=True, kid_subsets=1, kid_subset_size=80, prc=True, isc=True, samples_shuffle=False,
        samples_find_deep=False, batch_size=16, save_cpu_ram=True,
    )  # fmt: skip
    ours = compare_with(Reference("r", 80, "h", judge(real)), judge(made), judge)
    assert ours["fd_thumbnail_4"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["kid_thumbnail_4"].value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["precision_k3_thumbnail_4"].value == pytest.approx(theirs["precision"])
    assert ours["recall_k3_thumbnail_4"].value == pytest.approx(theirs["recall"])
    assert ours["is_thumbnail_4"].value == pytest.approx(theirs["inception_score_mean"], rel=0.02)  # other splits


def test_features_can_be_indexed_and_put_together():
    both = Features(features(4, 3), features(4, 2))
    again = Features.cat([both[:1], both[1:]])
    assert torch.equal(again.pooled, both.pooled)
    assert torch.equal(again.spatial, both.spatial)
    assert len(Features.cat([Features(features(2, 3)), Features(features(3, 3))])) == 5
