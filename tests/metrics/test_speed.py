import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldmlab.metrics.speed import count_flops, count_parameters, peak_memory_mb


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_mb("cpu")
    held = torch.ones(int(before * 1e6 / 4) + 25_000_000)  # as much as the peak so far, and 100 MB
    assert peak_memory_mb("cpu") > before + 50
    del held


def test_parameters_are_counted_once_and_buffers_not():
    layer = nn.Linear(3, 4)
    module = nn.Sequential(layer, nn.BatchNorm1d(4), nn.Linear(4, 3), layer)
    assert count_parameters(module) == 16 + 8 + 15


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
