"""Speeds, on a clock that the test owns."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from ldmlab.autoencoders.base import Autoencoder
from ldmlab.errors import UserError
from ldmlab.metrics import speed
from ldmlab.modules.model import Samples
from ldmlab.tasks import measure_speed
from ldmlab.tasks.measure_speed import timed


def test_timings_are_given_as_median_and_quartiles():
    metric = timed([1.0, 2.0, 4.0, 8.0, 10.0], lambda seconds: 40 / seconds, {"device": "x"})
    assert metric["value"] == 10
    assert metric["manifest"] == {"device": "x", "quartiles": [5, 20], "repeats": 5}


class Clock:
    """Time that passes only when something works; `events` are work, synchronisation and readings, in order."""

    def __init__(self, monkeypatch):
        self.now, self.events = 0.0, []
        monkeypatch.setattr(speed.time, "perf_counter", self.read)
        monkeypatch.setattr(speed, "synchronize", lambda device: self.events.append("synchronised"))

    def read(self):
        self.events.append("read")
        return self.now

    def work(self, seconds):
        self.events.append("work")
        self.now += seconds


def test_warm_ups_do_not_count_and_the_device_has_done_its_work_at_each_reading(monkeypatch):
    clock = Clock(monkeypatch)
    durations = iter([100.0, 50.0, 2.0, 3.0, 4.0])
    seconds = speed.time_repeats(lambda: clock.work(next(durations)), 3, "cpu", warmups=2)
    assert seconds == [2.0, 3.0, 4.0]
    assert all(before == "synchronised" for before, event in pairwise(clock.events) if event == "read")


@pytest.mark.parametrize(
    ("rates", "largest", "best", "tried"),
    [
        ({1: 1, 2: 2, 4: 4, 8: 8}, 8, 8, [1, 2, 4, 8]),
        ({1: 10, 2: 19, 4: 19.2, 8: 19.4, 16: 40}, 16, 2, [1, 2, 4, 8]),  # two doublings without gain end it
        ({1: 10, 2: 9, 4: 20, 8: 20, 16: 20}, 64, 4, [1, 2, 4, 8, 16]),
        ({1: 5}, 1, 1, [1]),
    ],
)
def test_the_smallest_batch_with_nearly_the_best_throughput_is_taken(rates, largest, best, tried):
    assert speed.best_batch_size(rates.__getitem__, largest) == (best, tried)


def test_whole_samplings_that_do_not_fit_are_halved():
    def sampling(batch_size):
        def work():
            if batch_size > 8:
                raise torch.OutOfMemoryError

        return work

    seconds, batch_size = measure_speed.time_whole(sampling, 32, 3, torch.device("cpu"))
    assert (len(seconds), batch_size) == (3, 8)
    with pytest.raises(UserError, match="a single image"):
        speed.best_batch_size(lambda size: sampling(9)(), 4)


def test_a_batch_that_does_not_fit_ends_the_search():
    def throughput(size):
        if size > 4:
            raise torch.OutOfMemoryError
        return float(size)

    assert speed.best_batch_size(throughput, 64) == (4, [1, 2, 4])


class Decoder(Autoencoder):
    """Decodes in a hundredth of a second an image."""

    def __init__(self, clock):
        super().__init__(downsampling_factor=4, latent_channels=3)
        self.clock = clock

    def decode(self, latents):
        self.clock.work(0.01 * len(latents))
        return latents.repeat_interleave(4, -1).repeat_interleave(4, -2)


class Model:
    """A pass of the denoiser takes a second, and a tenth more for each row; guidance has two rows an image."""

    def __init__(self, clock, calls=3):
        self.clock, self.calls, self.sampled = clock, calls, []
        self.autoencoder = Decoder(clock)

    def evaluate(self, rows):
        self.clock.work(1 + 0.1 * rows)

    def condition(self, network, conditions):
        self.clock.work(0.001)

    def sample(self, conditions, seeds, latent_size, sampler, guidance, network):
        self.sampled.append(len(seeds))
        for _ in range(self.calls):
            self.evaluate(2 * len(seeds))
        images = self.autoencoder.decode(torch.zeros(len(seeds), 3, latent_size, latent_size))
        return Samples(images, images, evaluations=2 * self.calls)


class Guided:
    def __init__(self, model, network, conditions, count, guidance):
        self.model, self.rows = model, 0

    def __call__(self, xt, t):
        self.rows += 2 * len(xt)
        self.model.evaluate(2 * len(xt))


@pytest.fixture
def measured(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(measure_speed, "GuidedDenoiser", Guided)
    model = Model(clock)
    conditioner = type("Conditioner", (), {"told": ("label",)})()
    network = SimpleNamespace(conditioner=conditioner)
    info = SimpleNamespace(image_size=16, fingerprint="data")

    def slow_examples(rows, conditioner):
        clock.work(100)  # reading them from a data set is no part of sampling
        return {}

    quality = SimpleNamespace(
        device=torch.device("cpu"), data=SimpleNamespace(info=info), samples=10, examples=slow_examples
    )
    metrics = measure_speed.measure_speed(
        model, network, quality, None, None, {"sampler": "x"}, "x3", repeats=10, largest_batch=64, seed=0
    )
    return model, metrics


def test_each_part_and_the_whole_are_timed_at_the_best_batch_and_at_one(measured):
    _, metrics = measured
    batch = metrics["speed/images_per_s@x3"]["manifest"]["batch_size"]
    assert batch == 64  # rows are cheap beside the second that every pass takes
    seconds = 3 * (1 + 0.2 * batch) + 0.01 * batch
    assert metrics["speed/images_per_s@x3"]["value"] == pytest.approx(batch / seconds)
    assert metrics["speed/latency_s@x3"]["value"] == pytest.approx(3 * 1.2 + 0.01)
    assert metrics["speed/denoiser_images_per_s@x3"]["value"] == pytest.approx(batch / (1 + 0.2 * batch))
    assert metrics["speed/denoiser_latency_s@x3"]["value"] == pytest.approx(1.2)
    assert metrics["speed/decoder_images_per_s@x3"]["value"] == pytest.approx(100)
    assert metrics["speed/decoder_latency_s@x3"]["value"] == pytest.approx(0.01)
    assert metrics["speed/conditioner_latency_s@x3"]["value"] == pytest.approx(0.001)
    assert metrics["speed/nfe@x3"]["value"] == 6


def test_every_timing_has_ten_repeats_quartiles_and_says_on_what(measured):
    _, metrics = measured
    timings = {name: metric for name, metric in metrics.items() if name.endswith(("_per_s@x3", "latency_s@x3"))}
    assert len(timings) == 8
    for metric in timings.values():
        told = metric["manifest"]
        assert told["repeats"] == 10
        assert len(told["quartiles"]) == 2
        assert told["device"]
        assert told["threads"] == torch.get_num_threads()
        assert told["sampler"] == "x"


def test_the_search_samples_no_whole_images(measured):
    model, _ = measured
    # one for the operations, one for the evaluations, then a warm-up and ten repeats each
    assert model.sampled == [1, 1, *[64] * 11, *[1] * 11]
