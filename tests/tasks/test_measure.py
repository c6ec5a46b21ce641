"""Quality: which images are compared with which, and what a perfect model would be told."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldmlab.autoencoders.identity import IdentityAutoencoder
from ldmlab.conditioners.base import Conditioners
from ldmlab.data.shapes import Shapes
from ldmlab.errors import UserError
from ldmlab.metrics.extractors import FeatureExtractor, Features
from ldmlab.metrics.names import DISTANCES
from ldmlab.metrics.references import read_npz
from ldmlab.modules.model import Samples
from ldmlab.tasks.measure import floor_of, headline, measure_generation, measure_real, measure_reconstruction, seed_of
from ldmlab.tasks.quality import Quality, without_images


class MeanColours(FeatureExtractor):
    """Features that a test can follow: the image's 4 x 4 thumbnail."""

    name, dimensions, input_size, resize, hash = "thumbnail_4", 48, 4, "area", "none"

    def __init__(self):
        super().__init__(torch.nn.Identity(), batch_size=8)
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        return Features(torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1))


@pytest.fixture
def data():
    return Shapes(image_size=16, train_images=80, val_images=40)


def choose(data, tmp_path, samples, seed=0, **options):
    device = torch.device("cpu")
    return Quality.choose(data, MeanColours(), tmp_path, device, samples, "val", seed, DISTANCES, **options)


def test_reference_and_floor_are_disjoint_within_the_split(data, tmp_path):
    quality = choose(data, tmp_path, 20)
    assert quality.samples == 20
    assert quality.floor_split == "val"
    assert not set(quality.reference_rows) & set(quality.floor_rows)


def test_a_small_split_takes_its_floor_from_the_other_one(data, tmp_path):
    quality = choose(data, tmp_path, 1000)
    assert quality.samples == 40
    assert (quality.floor_split, len(quality.floor_rows)) == ("train", 40)


def test_another_seed_draws_other_images(data, tmp_path):
    assert choose(data, tmp_path, 20).reference_rows != choose(data, tmp_path, 20, seed=1).reference_rows


def test_features_of_real_images_are_made_once(data, tmp_path):
    first = choose(data, tmp_path, 20)
    features = first.reference().features.pooled
    second = choose(data, tmp_path, 20)
    torch.testing.assert_close(second.reference().features.pooled, features, rtol=0, atol=0)
    assert first.extractor.calls > 0
    assert second.extractor.calls == 0


def test_a_perfect_autoencoder_has_the_floor_of_real_images(data, tmp_path):
    quality = choose(data, tmp_path, 20)
    real = measure_real(quality)
    reconstructed = measure_reconstruction(IdentityAutoencoder(), quality, "model")
    for name in ("val/kid_thumbnail_4", "val/fd_thumbnail_4"):
        # uint8 in both; features of whole batches differ by rounding only
        assert reconstructed[f"{name}@reconstruction"]["value"] == pytest.approx(
            real[f"{name}@real"]["value"], rel=1e-4
        )
    assert real["val/kid_thumbnail_4@real"]["manifest"]["reference_samples"] == 20


def test_conditions_are_those_of_the_reference_and_hold_no_images(data, tmp_path):
    quality = choose(data, tmp_path, 20)
    conditions = without_images(quality.examples([0, 5], Conditioners({})))
    rows = [quality.reference_rows[0], quality.reference_rows[5]]
    assert "image" not in conditions
    assert conditions["label"].tolist() == data.split("val").__getitems__(rows)["label"].tolist()


def test_images_of_a_set_have_seeds_of_their_own():
    seeds = {seed_of(seed, row) for seed in range(3) for row in range(100)}
    assert len(seeds) == 300
    assert seed_of(0, 1) == seed_of(0, 1)


def test_a_larger_reference_holds_the_smaller_one_and_leaves_the_floor_apart(data, tmp_path):
    small, large = choose(data, tmp_path, 10), choose(data, tmp_path, 10, reference_samples=25)
    assert large.rows == small.rows == large.reference_rows[:10]
    assert len(large.reference_rows) == 25
    assert not set(large.reference_rows) & set(large.floor_rows)
    assert large.floor_split == "val"
    everything = choose(data, tmp_path, 10, reference_samples="all")
    assert (len(everything.reference_rows), everything.floor_split) == (40, "train")
    assert small.reference().hash != large.reference().hash


def test_the_key_of_a_reference_tells_data_split_images_and_features_apart(data, tmp_path):
    keys = {choose(data, tmp_path, 20).reference().hash}
    keys.add(choose(data, tmp_path, 20, seed=1).reference().hash)
    keys.add(choose(Shapes(image_size=8, train_images=80, val_images=40), tmp_path, 20).reference().hash)
    other = choose(data, tmp_path, 20)
    other.extractor.hash = "other weights"
    keys.add(other.reference().hash)
    resized = choose(data, tmp_path, 20)
    resized.extractor.resize = "nearest"
    keys.add(resized.reference().hash)
    assert len(keys) == 5


def test_a_file_as_reference_names_the_metrics(data, tmp_path):
    images = np.zeros((30, 16, 16, 3), dtype=np.uint8)
    images[:, :, :8] = np.arange(30, dtype=np.uint8)[:, None, None, None]
    np.savez(tmp_path / "published.npz", arr_0=images)
    published = read_npz(tmp_path / "published.npz", MeanColours(), 16)
    quality = choose(data, tmp_path, 20, published=published)
    real = measure_real(quality)
    assert "published/kid_thumbnail_4@real" in real
    told = real["published/fd_thumbnail_4@real"]["manifest"]
    assert (told["reference_samples"], told["images"]) == (30, "shapes/val")  # nobody knows whether they are disjoint
    own = replace(published, made_of="shapes/val")
    assert choose(data, tmp_path, 20, published=own).floor_split == "train"


def test_a_judge_that_the_run_was_trained_against_is_refused(data, tmp_path):
    quality = choose(data, tmp_path, 20)
    quality.refuse(["other"])
    with pytest.raises(UserError, match=r"metrics.features: the autoencoder was trained to please"):
        quality.refuse(["none"])  # the hash of MeanColours


def test_too_small_a_split_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="val_fraction"):
        choose(Shapes(image_size=16, train_images=80, val_images=5), tmp_path, 20)


class Painter:
    """Stands in for a model: an image is its seed's colour under its label, whatever the batch it is in."""

    autoencoder = IdentityAutoencoder()

    def __init__(self):
        self.batches = []

    def sample(self, conditions, seeds, latent_size, sampler, guidance, network):
        self.batches.append(list(seeds))
        colours = torch.tensor([[(seed >> shift) % 256 for shift in (0, 8, 16)] for seed in seeds]) / 127.5 - 1
        images = colours[:, :, None, None].expand(-1, -1, latent_size, latent_size)
        return Samples(images, images, evaluations=7)


def generate(quality, batch, painter=None):
    network = SimpleNamespace(conditioner=Conditioners({}))
    return measure_generation(painter or Painter(), network, quality, None, None, {"sampler": "x"}, "x1", batch, seed=3)


def test_generated_images_do_not_depend_on_the_batches(data, tmp_path):
    quality, painter = choose(data, tmp_path, 20), Painter()
    metrics = generate(quality, 8, painter)
    assert [len(batch) for batch in painter.batches] == [8, 8, 4]
    assert [seed for batch in painter.batches for seed in batch] == [seed_of(3, row) for row in range(20)]
    assert metrics == {
        name: {**metric, "manifest": {**metric["manifest"], "sampling_batch": 8}}
        for name, metric in generate(quality, 5).items()
    }


def test_every_distance_has_a_manifest_that_tells_how_it_was_made(data, tmp_path):
    for metric in generate(choose(data, tmp_path, 20), 8).values():
        told = metric["manifest"]
        for key in (
            "extractor",
            "weights_sha256",
            "resize",
            "reference",
            "reference_hash",
            "data_fingerprint",
            "torch",
        ):
            assert told[key] is not None
        assert (told["samples"], told["nfe"], told["seed"], told["sampler"]) == (20, 7, 3, "x")


def test_clip_scores_are_of_each_image_with_its_own_caption(data, tmp_path):
    quality = choose(data, tmp_path, 20)
    asked = []

    class Lengths:
        name, hash = "clip_score_lengths", "none"

        def __call__(self, images, captions):
            asked.extend(captions)
            return torch.tensor([float(len(caption)) for caption in captions])

    quality.clip_score = Lengths()
    metric = generate(quality, 8)["val/clip_score_lengths@x1"]
    captions = data.split("val").__getitems__(list(quality.rows))["caption"]
    assert asked == captions
    assert metric["value"] == pytest.approx(sum(map(len, captions)) / 20)
    assert metric["standard_error"] > 0


def test_a_cheap_look_takes_fewer_images_and_fewer_distances(data, tmp_path):
    quality = choose(data, tmp_path, 20)
    quality.reference()
    few = generate(quality.fewer(10, ("kid",)), 8)
    assert set(few) == {"val/kid_thumbnail_4@x1"}
    assert few["val/kid_thumbnail_4@x1"]["manifest"]["reference_samples"] == 10
    assert quality.samples == 20


def entry(value, samples, error=None):
    return {"value": value, "manifest": {"samples": samples}, **({"standard_error": error} if error else {})}


def test_the_headline_is_kid_below_five_thousand_images_and_frechet_from_there():
    for samples, said in (
        (4999, "val/kid_x@a 0.1000 ± 0.0100 (real against real 0.0010"),
        (5000, "val/fd_x@a 20.0000 (real against real 5"),
    ):
        metrics = {
            "val/fd_x@a": entry(20.0, samples),
            "val/kid_x@a": entry(0.1, samples, 0.01),
            "val/fd_x@real": entry(5.0, samples),
            "val/kid_x@real": entry(0.001, samples, 0.001),
            "val/fdinf_x@a": entry(3.0, samples, 0.01),
        }
        assert headline(metrics, "a").startswith(said)
    assert headline({"val/fd_x@a": entry(20.0, 10)}, "a") == "val/fd_x@a 20.0000 (N = 10)"


def test_a_biased_distance_has_no_floor_at_another_number_of_images():
    metrics = {
        "val/fd_x@a": entry(20.0, 9000),
        "val/fd_x@real": entry(5.0, 5000),
        "val/kid_x@a": entry(0.2, 9000),
        "val/kid_x@real": entry(0.1, 5000),
    }
    assert headline(metrics, "a") == "val/fd_x@a 20.0000 (N = 9,000)"
    assert floor_of(metrics, "val/fd_x@a") is None
    assert floor_of(metrics, "val/kid_x@a")["value"] == 0.1


def test_too_few_images_for_the_floor_are_said_before_anything_is_measured(tmp_path):
    with pytest.raises(UserError, match="for the floor of real images"):
        choose(Shapes(image_size=16, train_images=5, val_images=30), tmp_path, 20)
