"""Quality: which images are compared with which, and what a perfect model would be told."""

from itertools import pairwise

import pytest
import torch

from ldmlab.autoencoders.identity import IdentityAutoencoder
from ldmlab.data.shapes import Shapes
from ldmlab.metrics.extractors import FeatureExtractor
from ldmlab.modules.model import Samples
from ldmlab.tasks import measure
from ldmlab.tasks.measure import Quality, measure_generation, measure_real, measure_reconstruction, seed_of, timed


class MeanColours(FeatureExtractor):
    """Features that a test can follow: the image's 4 x 4 thumbnail."""

    name, dimensions, input_size, resize, hash = "thumbnail_4", 48, 4, "area", "none"

    def __init__(self):
        super().__init__(torch.nn.Identity(), batch_size=8)
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)


def no_track(iterable, length, title):
    return iterable


@pytest.fixture
def data():
    return Shapes(image_size=16, train_images=80, val_images=40)


def choose(data, tmp_path, samples, seed=0):
    return Quality.choose(data, MeanColours(), tmp_path, torch.device("cpu"), samples, "val", seed)


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
    features = first.reference_features(no_track)
    second = choose(data, tmp_path, 20)
    torch.testing.assert_close(second.reference_features(no_track), features, rtol=0, atol=0)
    assert first.extractor.calls > 0
    assert second.extractor.calls == 0


def test_a_perfect_autoencoder_has_the_floor_of_real_images(data, tmp_path):
    quality = choose(data, tmp_path, 20)
    real = measure_real(quality, no_track)
    reconstructed = measure_reconstruction(IdentityAutoencoder(), quality, no_track)
    for name in ("val/kid_thumbnail_4", "val/fd_thumbnail_4"):
        # uint8 in both; features of whole batches differ by rounding only
        assert reconstructed[f"{name}@reconstruction"]["value"] == pytest.approx(
            real[f"{name}@real"]["value"], rel=1e-4
        )
    assert real["val/kid_thumbnail_4@real"]["manifest"]["reference_samples"] == 20


def test_conditions_are_those_of_the_reference_and_hold_no_images(data, tmp_path):
    quality = choose(data, tmp_path, 20)
    conditions = quality.conditions([0, 5])
    rows = [quality.reference_rows[0], quality.reference_rows[5]]
    assert "image" not in conditions
    assert conditions["label"].tolist() == data.split("val").__getitems__(rows)["label"].tolist()


def test_images_of_a_set_have_seeds_of_their_own():
    seeds = {seed_of(seed, row) for seed in range(3) for row in range(100)}
    assert len(seeds) == 300
    assert seed_of(0, 1) == seed_of(0, 1)


def test_timings_are_given_as_median_and_quartiles():
    metric = timed([1.0, 2.0, 4.0, 8.0, 10.0], lambda seconds: 40 / seconds, {"device": "x"})
    assert metric["value"] == 10
    assert metric["manifest"] == {"device": "x", "quartiles": [5, 20], "repeats": 5}


class SlowAtFirst:
    """Stands in for a model whose first call takes 100 s and every other one a second, on a clock of its own.

    `events` are, in order, the device's work, its synchronisation and the readings of the clock.
    """

    autoencoder = IdentityAutoencoder()

    def __init__(self, monkeypatch):
        self.now, self.calls, self.events = 0.0, [], []
        monkeypatch.setattr(measure.time, "perf_counter", self.clock)
        monkeypatch.setattr(measure, "synchronize", lambda device: self.events.append("synchronised"))
        monkeypatch.setattr(measure, "measure_decoding", lambda *_: {"value": 1.0, "manifest": {}})

    def clock(self):
        self.events.append("clock")
        return self.now

    def sample(self, conditions, seeds, latent_size, sampler, guidance, network):
        self.events.append("work")
        self.now += 1.0 if self.calls else 100.0
        self.calls.append(len(seeds))
        images = torch.zeros(len(seeds), 3, latent_size, latent_size)
        return Samples(images, images, evaluations=7)


def speed_of(model, quality, sampling_batch, repeats):
    return measure_generation(
        model, None, quality, None, None, {}, "slow1", no_track, sampling_batch, latency_repeats=repeats, seed=0
    )  # fmt: skip


def test_speed_leaves_out_the_first_batch_and_what_is_no_full_batch(data, tmp_path, monkeypatch):
    model = SlowAtFirst(monkeypatch)
    metrics = speed_of(model, choose(data, tmp_path, 20), sampling_batch=8, repeats=2)
    assert model.calls == [8, 8, 4, 1, 1, 1]  # the first image alone warms up as well
    assert metrics["speed/images_per_s@slow1"]["value"] == 8
    assert metrics["speed/images_per_s@slow1"]["manifest"]["repeats"] == 1
    assert metrics["speed/latency_s@slow1"]["value"] == 1
    assert metrics["speed/latency_s@slow1"]["manifest"]["repeats"] == 2
    assert metrics["speed/nfe@slow1"]["value"] == 7


def test_the_device_has_done_its_work_at_each_reading_of_the_clock(data, tmp_path, monkeypatch):
    model = SlowAtFirst(monkeypatch)
    speed_of(model, choose(data, tmp_path, 20), sampling_batch=8, repeats=1)
    sampling = model.events[: model.events.index("work") + 3]
    assert sampling == ["synchronised", "clock", "work", "synchronised", "clock"]
    assert all(before == "synchronised" for before, event in pairwise(model.events) if event == "clock")


def test_a_set_of_one_batch_is_drawn_again_to_be_timed(data, tmp_path, monkeypatch):
    model = SlowAtFirst(monkeypatch)
    metrics = speed_of(model, choose(data, tmp_path, 20), sampling_batch=50, repeats=30)
    assert model.calls[:2] == [20, 20]
    assert metrics["speed/images_per_s@slow1"]["value"] == 20
    assert metrics["speed/images_per_s@slow1"]["manifest"]["batch_size"] == 20
    assert metrics["speed/latency_s@slow1"]["manifest"]["repeats"] == 30
