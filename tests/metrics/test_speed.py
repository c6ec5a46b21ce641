import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldmlab.metrics import speed
from ldmlab.metrics.speed import count_flops, count_parameters, measure_speed, peak_memory_mb


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_calls_are_warmups_and_repeats_of_the_asked_batch():
    calls = []
    result = measure_speed(calls.append, batch_size=7, repeats=4, warmup=3)
    assert calls == [7] * 7
    assert (result.batch_size, result.repeats, result.warmup) == (7, 4, 3)
    assert result.threads == 1
    assert result.device


def test_warmups_are_not_in_the_numbers():
    calls = []

    def slow_at_first(batch_size):
        calls.append(batch_size)
        time.sleep(0.3 if len(calls) <= 2 else 0.01)

    result = measure_speed(slow_at_first, batch_size=1, repeats=5, warmup=2)
    assert result.seconds_lower <= result.seconds <= result.seconds_upper < 0.3


def test_median_and_quartiles_are_those_of_the_calls(monkeypatch):
    # a clock that only the timed calls move
    now = [0.0]
    durations = iter([1.0, 2.0, 3.0, 4.0, 100.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def sample(batch_size):
        now[0] += next(durations)

    result = measure_speed(sample, batch_size=6, repeats=5, warmup=0)
    assert (result.seconds_lower, result.seconds, result.seconds_upper) == (2, 3, 4)
    assert result.images_per_s == 2


def test_the_device_is_synchronised_before_each_reading_of_the_clock(monkeypatch):
    events = []
    monkeypatch.setattr(speed, "synchronize", lambda device: events.append("sync"))
    clock = time.perf_counter
    monkeypatch.setattr(speed.time, "perf_counter", lambda: events.append("clock") or clock())
    measure_speed(lambda batch_size: events.append("work"), batch_size=1, repeats=2, warmup=1)
    assert events == ["work", *["sync", "clock", "work", "sync", "clock"] * 2]


def test_sleep_costs_wall_time_but_no_cpu_time():
    result = measure_speed(lambda batch_size: time.sleep(0.05), batch_size=1, repeats=3, warmup=0)
    assert result.seconds >= 0.05
    assert result.cpu_seconds < 0.02


def test_one_repeat_is_enough():
    result = measure_speed(lambda batch_size: None, batch_size=1, repeats=1)
    assert result.seconds_lower == result.seconds == result.seconds_upper
    with pytest.raises(ValueError, match="repeats"):
        measure_speed(lambda batch_size: None, batch_size=1, repeats=0)


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_mb("cpu")
    held = torch.ones(int(before * 1e6 / 4) + 25_000_000)  # as much as the peak so far, and 100 MB
    assert peak_memory_mb("cpu") > before + 50
    del held


def test_parameters_are_counted_once_and_buffers_not():
    layer = nn.Linear(3, 4)
    module = nn.Sequential(layer, nn.BatchNorm1d(4), nn.Linear(4, 3), layer)
    assert count_parameters(module) == 16 + 8 + 15
    layer.requires_grad_(False)
    assert count_parameters(module, trainable_only=True) == 8 + 15


def test_flops_of_a_convolution_and_of_a_product_are_two_per_multiplication():
    convolution = nn.Conv2d(3, 8, 3)
    x = torch.randn(2, 3, 10, 10)
    assert count_flops(lambda: convolution(x)) == 2 * 2 * 8 * 8 * 8 * 27
    assert count_flops(lambda: torch.randn(4, 5) @ torch.randn(5, 6)) == 2 * 4 * 5 * 6


@pytest.mark.parametrize("inference", [True, False])
def test_fused_attention_on_a_cpu_is_counted(inference):
    query = torch.randn(2, 4, 64, 32)
    with torch.inference_mode(inference):
        assert count_flops(lambda: F.scaled_dot_product_attention(query, query, query)) == 2 * 2 * 2 * 4 * 64 * 64 * 32


def test_backward_of_attention_costs_more_than_twice_its_forward():
    query = torch.randn(1, 2, 16, 8, requires_grad=True)

    def forward():
        return F.scaled_dot_product_attention(query, query, query).sum()

    assert count_flops(lambda: forward().backward()) > 3 * count_flops(forward)
