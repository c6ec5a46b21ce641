from dataclasses import replace

import pytest
import torch

from ldmlab.denoisers.layers import TimeEmbedding, group_norm
from ldmlab.denoisers.unet import UNet
from ldmlab.types import Conditioning


def awake(network):
    """The network with its zero-initialised branches switched on, so that a test sees their effect."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (4, 8, 8)),
        ({"channel_multipliers": (1, 2, 2), "blocks": 2, "attention_levels": (1, 2)}, (3, 16, 16)),
        ({"channel_multipliers": (1,), "attention_levels": ()}, (8, 3, 5)),
        ({"patch_size": 2}, (3, 16, 16)),
    ],
)
def test_the_output_has_the_shape_of_the_input(options, shape):
    network = UNet(shape[0], channels=16, head_channels=8, **options)
    assert network(torch.randn(2, *shape), torch.rand(2)).shape == (2, *shape)


def test_a_new_network_predicts_zero():
    assert not UNet(3, channels=16)(torch.randn(2, 3, 8, 8), torch.rand(2)).any()


def test_time_and_condition_change_the_prediction():
    network = awake(UNet(2, condition_width=5, channels=16, head_channels=8))
    x = torch.randn(1, 2, 8, 8)
    told = Conditioning(vector=torch.randn(1, 5))
    reference = network(x, torch.tensor([0.5]), told)
    assert not torch.allclose(reference, network(x, torch.tensor([0.6]), told))
    assert not torch.allclose(reference, network(x, torch.tensor([0.5]), Conditioning(vector=torch.randn(1, 5))))


def test_samples_of_a_batch_do_not_see_each_other():
    network = awake(UNet(2, channels=16, head_channels=8))
    x, t = torch.randn(3, 2, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(network(x, t)[1:2], network(x[1:2], t[1:2]), rtol=1e-4, atol=1e-5)


def test_every_position_reaches_every_other():
    network = awake(UNet(1, channels=16, head_channels=8))
    x = torch.randn(1, 1, 16, 16, requires_grad=True)
    network(x, torch.tensor([0.5]))[0, 0, 0, 0].backward()
    assert x.grad[0, 0].abs().min() > 0


def test_every_weight_gets_a_gradient():
    network = awake(UNet(2, condition_width=5, channels=16, head_channels=8))
    network(torch.randn(2, 2, 8, 8), torch.rand(2), Conditioning(vector=torch.randn(2, 5))).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_missing_condition_is_refused():
    with pytest.raises(ValueError, match="route `vector`"):
        UNet(2, condition_width=5, channels=16)(torch.randn(1, 2, 8, 8), torch.rand(1))


def test_time_embedding_tells_near_times_apart_and_is_sinusoidal():
    embedding = TimeEmbedding(8, features=4)
    assert embedding.frequencies.tolist() == pytest.approx([1000.0, 10.0])
    a, b = embedding(torch.tensor([0.500, 0.501]))
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("channels", [3, 16, 24, 64, 128, 320])
def test_group_norm_fits_any_width(channels):
    assert group_norm(channels)(torch.randn(2, channels, 4, 4)).shape == (2, channels, 4, 4)


def told(tokens=5, seed=0):
    torch.manual_seed(seed)
    mask = torch.ones(2, tokens, dtype=torch.bool)
    return Conditioning(tokens=torch.randn(2, tokens, 6), token_mask=mask, spatial=torch.randn(2, 3, 8, 8))


def conditional():
    return awake(UNet(2, token_width=6, spatial_channels=3, channels=16, head_channels=8)).eval()


def test_tokens_and_maps_change_the_prediction():
    network, x, t = conditional(), torch.randn(2, 2, 8, 8), torch.rand(2)
    reference, others = network(x, t, told()), told(seed=1)
    for route in ("tokens", "spatial"):
        assert not torch.allclose(reference, network(x, t, replace(told(), **{route: getattr(others, route)})))


def test_masked_tokens_are_not_heard():
    network, x, t = conditional(), torch.randn(2, 2, 8, 8), torch.rand(2)
    short = told()
    longer = short.lengthened(9)
    assert longer.tokens.shape == (2, 9, 6)
    longer.tokens[:, 5:] = 100.0
    torch.testing.assert_close(network(x, t, longer), network(x, t, short), rtol=1e-4, atol=1e-5)


def test_the_order_of_tokens_is_theirs_to_tell():
    network, x, t = conditional(), torch.randn(2, 2, 8, 8), torch.rand(2)
    turned = replace(told(), tokens=told().tokens.flip(1))
    torch.testing.assert_close(network(x, t, turned), network(x, t, told()), rtol=1e-4, atol=1e-5)


def test_every_weight_of_a_network_that_is_told_gets_a_gradient():
    network = conditional()
    network(torch.randn(2, 2, 8, 8), torch.rand(2), told()).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_route_that_nobody_was_built_for_is_refused():
    with pytest.raises(ValueError, match="without the route `tokens`"):
        UNet(2, channels=16)(torch.randn(2, 2, 8, 8), torch.rand(2), Conditioning(tokens=torch.randn(2, 1, 4)))


@pytest.mark.parametrize(("options", "multiple"), [({}, 2), ({"channel_multipliers": (1, 2, 2), "patch_size": 2}, 8)])
def test_the_multiple_is_the_smallest_size(options, multiple):
    network = UNet(3, channels=16, **options)
    assert network.multiple == multiple
    assert network(torch.randn(1, 3, multiple, 2 * multiple), torch.rand(1)).shape == (1, 3, multiple, 2 * multiple)
