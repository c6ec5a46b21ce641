"""What a training step takes, found without computing anything."""

import torch
import torch.nn.functional as F
from torch import nn

from ldmlab.metrics.footprint import footprint, weightless
from ldmlab.metrics.speed import count_flops


def of_linear(images=4, width=8, optimizer=torch.optim.Adam, **options):
    layer = nn.Linear(width, width)
    x = torch.ones(images, width)
    return footprint(
        [layer], layer, lambda: layer(x).square().mean(), images, lambda: optimizer(layer.parameters()), **options
    )


def test_a_linear_layer_by_hand():
    with weightless():
        found = of_linear()
    parameters = 8 * 8 + 8
    assert found.parameters == parameters
    assert found.weights == found.gradients == 4 * parameters
    assert found.optimizer == 2 * 4 * parameters + 2 * 4  # two moments, and the number of steps of both tensors
    # the input, and the output that is squared
    assert found.activations == 2 * 4 * 8
    assert found.flops == 2 * 2 * 8 * 8  # forward, and for the weights; the input needs no gradient
    assert found.states == 4 * 4 * parameters + 8


def test_averages_and_other_optimisers_count():
    with weightless():
        alone, averaged = of_linear(), of_linear(copies=1)
        plain = of_linear(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    assert averaged.weights == 2 * alone.weights
    assert averaged.gradients == alone.gradients
    assert plain.optimizer == 0


def test_it_is_the_same_with_contents():
    with weightless():
        without = of_linear()
    assert of_linear() == without


def test_mixed_precision_keeps_half_and_a_copy_of_the_weights():
    with weightless():
        full, half = of_linear(), of_linear(half=True)
    assert half.activations == full.activations / 2
    assert half.weights == full.weights * 1.5
    assert (half.flops, half.gradients, half.optimizer) == (full.flops, full.gradients, full.optimizer)


def test_attention_keeps_no_matrix_of_all_pairs():
    def attend():
        x = torch.ones(1, 2, 1000, 4, requires_grad=True)
        return footprint([], nn.ModuleList(), lambda: F.scaled_dot_product_attention(x, x, x).sum(), 1, list)

    with weightless():
        without = attend()
    assert without.activations < 1000 * 1000
    assert without == attend()


def test_neither_memory_nor_time_is_needed():
    with weightless():
        layer = nn.Linear(200_000, 100_000)  # 80 GB
        x = torch.ones(3, 200_000)
        flops = count_flops(lambda: layer(x))
    assert flops == 2 * 3 * 200_000 * 100_000


def test_two_footprints_add_up():
    with weightless():
        one = of_linear()
    both = one + one
    assert (both.parameters, both.activations, both.states) == (144, 2 * one.activations, 2 * one.states)
