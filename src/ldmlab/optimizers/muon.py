"""Muon: momentum whose update of every weight matrix is made orthogonal (Jordan et al. 2024).

Source: https://kellerjordan.github.io/posts/muon

Adam's updates of a matrix are of low rank: a few directions take nearly all of the step. Muon replaces the update by
the nearest matrix with all singular values near 1, so that rare directions are learned too.

`torch.optim.Muon` serves matrices alone, one by one and in bfloat16, which CPUs without it emulate at a crawl. This one
takes convolutions, iterates in the precision of the weights, and handles matrices of one shape in one go.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Jordan's quintic: p(s) = a s + b s³ + c s⁵ drives singular values towards 1 fast, and lets them end within 0.3 of it
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrices: Tensor, iterations: int) -> Tensor:
    """The matrices (N, rows, columns) with their singular values brought near 1, by Newton-Schulz iteration.

    Iterates on the square matrix X Xᵀ of the smaller side, of which every step's factor is a polynomial, and multiplies
    X by the product of the factors at the end: a quarter of the work for the oblong matrices of convolutions.
    """
    transposed = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if transposed else matrices
    gram = x @ x.mT
    # the iteration needs singular values of 1 at most: the trace is the sum of their squares
    squared_norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + 1e-14
    gram = gram / squared_norm
    product = squared_norm.rsqrt()
    for iteration in range(iterations):
        factor = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        factor.diagonal(dim1=-2, dim2=-1).add_(_A)
        product = factor @ product if iteration else factor * product
        if iteration + 1 < iterations:
            gram = factor @ gram @ factor
    x = product @ x
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Muon for groups with `matrices: True`, Adam for the others, as `ldmlab.optimizers.groups` makes them.

    The update of a matrix is scaled to the root mean square 0.2 that Adam's have (Liu et al. 2025, section 2.2), so
    that both kinds of parameters share one learning rate.

    Args:
        groups: parameter groups, each with the key `matrices`.
        lr: learning rate of both kinds.
        momentum: decay of the mean of gradients that matrices follow, with Nesterov's look ahead.
        iterations: Newton-Schulz iterations; each costs up to four products of square matrices of the smaller side.
        betas, eps: of Adam.
        weight_decay: decoupled, a share of lr a step, on matrices alone.

    Raises:
        ValueError: for a negative learning rate or no iterations.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        iterations: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        if lr < 0 or iterations < 1:
            raise ValueError(f"lr is 0 or more and iterations 1 or more, not {lr} and {iterations}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "iterations": iterations,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "step": 0,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] += 1
            pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if pairs:
                update = self._muon if group["matrices"] else self._adam
                update(group, [parameter for parameter, _ in pairs], [gradient for _, gradient in pairs])
        return loss

    def _means(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]

    def _muon(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        means = self._means(parameters, "momentum")
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, means, group["momentum"])
        same_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, update in zip(parameters, updates, strict=True):
            same_shape[parameter.flatten(1).shape].append((parameter, update.flatten(1)))
        for shape, pairs in same_shape.items():
            steps = orthogonalize(torch.stack([update for _, update in pairs]), group["iterations"])
            scale = -group["lr"] * 0.2 * max(shape) ** 0.5
            for (parameter, _), step in zip(pairs, steps, strict=True):
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step.view_as(parameter), alpha=scale)

    def _adam(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        means, squares = self._means(parameters, "mean"), self._means(parameters, "square")
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - beta2 ** group["step"]) ** 0.5)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(parameters, means, roots, -group["lr"] / (1 - beta1 ** group["step"]))
