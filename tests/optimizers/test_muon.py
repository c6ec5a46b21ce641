"""Muon against torch's own Muon and Adam, and the grouping of parameters."""

import pytest
import torch
from torch import nn

from ldmlab.optimizers.groups import parameter_groups
from ldmlab.optimizers.muon import Muon, orthogonalize


def one_group(parameter: nn.Parameter, matrices: bool) -> list[dict]:
    return [{"params": [parameter], "matrices": matrices}]


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalize_keeps_singular_vectors_and_brings_singular_values_near_one(shape):
    torch.manual_seed(0)
    rank = min(shape)
    u, _ = torch.linalg.qr(torch.randn(3, shape[0], rank, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(3, shape[1], rank, dtype=torch.float64))
    singular = torch.linspace(0.05, 2.0, rank, dtype=torch.float64)
    result = orthogonalize(u * singular @ v.mT, iterations=5)
    in_the_same_basis = u.mT @ result @ v
    diagonal = in_the_same_basis.diagonal(dim1=-2, dim2=-1)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    torch.testing.assert_close(in_the_same_basis, torch.diag_embed(diagonal), atol=1e-9, rtol=0)


def test_each_matrix_of_a_stack_is_orthogonalized_by_itself():
    torch.manual_seed(0)
    stack = torch.randn(4, 6, 9) * torch.tensor([1e-3, 1.0, 10.0, 1e3])[:, None, None]
    together = orthogonalize(stack, iterations=5)
    alone = torch.cat([orthogonalize(matrix[None], iterations=5) for matrix in stack])
    torch.testing.assert_close(together, alone)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(24, 64), (64, 24)])
def test_matrices_move_as_torchs_muon_moves_them(shape, weight_decay):
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": weight_decay}
    mine = Muon(one_group(ours, matrices=True), iterations=5, **settings)
    other = torch.optim.Muon([theirs], ns_steps=5, adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(5):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        other.step()
    # torch iterates in bfloat16, whose three digits bound the agreement
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_a_convolution_moves_as_its_flattened_matrix():
    torch.manual_seed(0)
    start = torch.randn(8, 4, 3, 3)
    convolution, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    convolution.grad = torch.randn_like(convolution)
    matrix.grad = convolution.grad.flatten(1).clone()
    for parameter in (convolution, matrix):
        Muon(one_group(parameter, matrices=True), lr=0.01).step()
    torch.testing.assert_close(convolution.flatten(1), matrix)


def test_the_rest_moves_as_torchs_adam_moves_it():
    torch.manual_seed(0)
    start = torch.randn(10)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon(one_group(ours, matrices=False), lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    other = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(20):
        gradient = torch.randn(10)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(ours, theirs)


def test_the_gradient_is_left_as_it_is():
    parameter = nn.Parameter(torch.randn(4, 6))
    parameter.grad = torch.ones(4, 6)
    Muon(one_group(parameter, matrices=True), lr=0.01).step()
    assert torch.equal(parameter.grad, torch.ones(4, 6))


def test_a_saved_state_goes_on_bitwise():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8, 5))
    images = torch.randn(6, 4, 3, 3, 3)

    def train(net: nn.Module, optimizer: Muon, batches: torch.Tensor) -> None:
        for batch in batches:
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            optimizer.step()

    start = {name: value.clone() for name, value in net.state_dict().items()}
    through = Muon(parameter_groups(net), lr=0.01)
    train(net, through, images)
    expected = {name: value.clone() for name, value in net.state_dict().items()}

    net.load_state_dict(start)
    first = Muon(parameter_groups(net), lr=0.01)
    train(net, first, images[:3])
    second = Muon(parameter_groups(net), lr=0.5)
    second.load_state_dict(first.state_dict())
    train(net, second, images[3:])
    for name, value in net.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_every_parameter_is_in_one_group_and_embedding_tables_are_no_matrices():
    net = nn.Sequential(nn.Embedding(7, 12), nn.Linear(12, 4), nn.LayerNorm(4), nn.Conv2d(3, 3, 1))
    matrices, others = parameter_groups(net)
    assert [tuple(p.shape) for p in matrices["params"]] == [(4, 12), (3, 3, 1, 1)]
    assert {id(p) for group in (matrices, others) for p in group["params"]} == {id(p) for p in net.parameters()}
    assert len(matrices["params"]) + len(others["params"]) == len(list(net.parameters()))
    assert any(p is net[0].weight for p in others["params"])
