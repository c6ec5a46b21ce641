"""Which of the eight shapes, moved, scaled, turned and blurred, a coverage looks most like."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ldmlab.data.shapes_words import MAX_TURN
from ldmlab.data.signed_distance import SHAPES

TURNS = (-0.6 * MAX_TURN, 0.0, 0.6 * MAX_TURN)  # of the first guesses
BLUR = (0.25, 4.0)  # standard deviation in pixels, the range that is tried
BLUR_PENALTY = 0.001  # per square pixel: a disc is not a blurred ring
REGIONS_AT_ONCE = 64  # bounds memory

_DISTANCES = tuple(SHAPES.values())

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Fit:
    """A shape that was fitted to a coverage."""

    shape: int
    pose: tuple[float, float, float, float, float]  # x, y, radius, angle and blur, in pixels of the window and radians
    rendered: Floats  # coverage in the window
    amplitude: float  # of the region's share where `rendered` is 1
    likeness: float


def moments() -> tuple[Tensor, Tensor]:
    """Area (8,) and centre of mass (8, 2), x right and y up, of the shapes of radius 1."""
    axis = torch.linspace(-1.2, 1.2, 257)
    x, y = axis.expand(257, 257), axis[:, None].expand(257, 257)
    inside = torch.stack([(distance(x, y) < 0).float() for distance in _DISTANCES])
    count = inside.sum(dim=(1, 2))
    middle = torch.stack([(inside * x).sum(dim=(1, 2)), (inside * y).sum(dim=(1, 2))], dim=1) / count[:, None]
    return count * (2.4 / 256) ** 2, middle


def _render(shape: int, pose: Tensor, side: int) -> Tensor:
    """Coverage (N, side, side) by shapes at `pose` (N, 5): x, y, radius, angle and blur, in pixels and radians."""
    x, y, radius, angle, blur = (column[:, None] for column in pose.unbind(dim=1))
    grid = torch.arange(side) + 0.5
    right, up = (grid - x) / radius, (y - grid) / radius
    cosine, sine = angle.cos(), angle.sin()
    own_x = (cosine * right)[:, None, :] + (sine * up)[:, :, None]
    own_y = (-sine * right)[:, None, :] + (cosine * up)[:, :, None]
    sharp = _DISTANCES[shape](own_x, own_y).mul_(-radius[..., None]).add_(0.5).clamp_(0, 1)
    weight = (torch.arange(1 - side, side) / blur).square_().mul_(-0.5).exp_()
    toeplitz = (weight / weight.sum(dim=1, keepdim=True)).unfold(1, side, 1).flip(2)
    return toeplitz @ sharp @ toeplitz


def fit_shapes(shares: list[Floats], factor: int) -> list[Fit]:
    """The best shape for each of `shares`, coverages of windows (h, w); shapes compete `factor` times smaller."""
    fits: dict[int, Fit] = {}
    order = sorted(range(len(shares)), key=lambda number: max(shares[number].shape))
    for start in range(0, len(order), REGIONS_AT_ONCE):
        together = order[start : start + REGIONS_AT_ONCE]
        fits |= zip(together, _fit_together([shares[number] for number in together], factor), strict=True)
    return [fits[number] for number in range(len(shares))]


def _fit_together(shares: list[Floats], factor: int) -> list[Fit]:
    side = math.ceil(max(max(share.shape) for share in shares) / factor) * factor
    target = torch.zeros(len(shares), side, side)
    for row, share in enumerate(shares):
        target[row, : share.shape[0], : share.shape[1]] = torch.from_numpy(share)
    coarse = F.avg_pool2d(target, factor)
    poses = _first_guesses(coarse)
    errors = _refine_best(coarse, poses, torch.zeros(poses.shape[:2]), finalists=len(SHAPES), steps=3)
    errors = _refine_best(coarse, poses, errors, finalists=3, steps=6)
    if factor > 1:
        poses *= torch.tensor([factor, factor, factor, 1, factor])
        errors = _refine_best(target, poses, errors, finalists=1, steps=3)
    fits = []
    for row, shape in enumerate(errors.argmin(dim=0).tolist()):
        rows, columns = shares[row].shape
        pose = poses[shape, row : row + 1]
        rendered = _render(shape, pose, side)
        amplitude = _amplitude(rendered, target[row : row + 1])
        covered = (target[row] / amplitude).clamp(0, 1)
        likeness = torch.minimum(covered, rendered[0]).sum() / torch.maximum(covered, rendered[0]).sum()
        x, y, radius, angle, blur = pose[0].tolist()
        window = rendered[0, :rows, :columns].numpy()
        fits.append(Fit(shape, (x, y, radius, angle, blur), window, amplitude.item(), likeness.item()))
    return fits


def _first_guesses(target: Tensor) -> Tensor:
    """Poses (8, N, 5) that give each shape the area and the centre of mass of `target`, in the best of three turns."""
    side = target.shape[-1]
    grid = torch.arange(side) + 0.5
    mass = target.sum(dim=(1, 2)).clamp_min(1)
    x, y = (target.sum(dim=1) * grid).sum(dim=1) / mass, (target.sum(dim=2) * grid).sum(dim=1) / mass
    poses = torch.zeros(len(SHAPES), len(target), 5)
    for shape, (area, (right, up)) in enumerate(zip(*moments(), strict=True)):
        radius = (mass / area).sqrt()
        best = torch.full_like(mass, torch.inf)
        for angle in TURNS:
            cosine, sine = math.cos(angle), math.sin(angle)
            own_x, own_y = x - radius * (cosine * right - sine * up), y + radius * (sine * right + cosine * up)
            pose = torch.stack([own_x, own_y, radius, torch.full_like(x, angle), torch.full_like(x, 0.7)], dim=1)
            pose = _within_reason(pose, side)
            error = _error(_render(shape, pose, side), target)
            better = error < best
            best = torch.where(better, error, best)
            poses[shape] = torch.where(better[:, None], pose, poses[shape])
    return poses


def _amplitude(rendered: Tensor, target: Tensor) -> Tensor:
    """The factor (N,) of `rendered` that comes closest to `target`, both (N, side, side)."""
    return ((rendered * target).sum(dim=(1, 2)) / rendered.square().sum(dim=(1, 2)).clamp_min(1e-3)).clamp_min(1e-3)


def _error(rendered: Tensor, target: Tensor) -> Tensor:
    """Share (N,) of the energy of `target` that is left beside the closest multiple of `rendered`."""
    left = target - _amplitude(rendered, target)[:, None, None] * rendered
    return left.square().sum(dim=(1, 2)) / target.square().sum(dim=(1, 2)).clamp_min(1e-3)


def _refine_best(target: Tensor, poses: Tensor, errors: Tensor, finalists: int, steps: int) -> Tensor:
    """Penalised errors (8, N) of the `finalists` best shapes, else infinite; refines `poses` (8, N, 5) in place."""
    chosen = errors.argsort(dim=0)[:finalists]
    errors = torch.full_like(errors, torch.inf)
    for shape in range(len(SHAPES)):
        rows = (chosen == shape).any(dim=0).nonzero()[:, 0]
        if len(rows):
            poses[shape, rows], errors[shape, rows] = _refine(shape, target[rows], poses[shape, rows], steps)
    return errors + BLUR_PENALTY * poses[..., 4].square()


def _refine(shape: int, target: Tensor, pose: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Poses (N, 5) and errors (N,) after Levenberg-Marquardt steps, with differences for derivatives."""
    side = target.shape[-1]
    rendered = _render(shape, pose, side)
    error = _error(rendered, target)
    damping = torch.full_like(error, 0.01)
    for _ in range(steps):
        amplitude = _amplitude(rendered, target)[:, None, None]
        nudge = torch.full_like(pose, 0.1)
        nudge[:, 3] /= pose[:, 2]
        rows = [rendered]  # the amplitude is the sixth unknown
        for unknown in range(pose.shape[1]):
            moved = pose.clone()
            moved[:, unknown] += nudge[:, unknown]
            rows.append(amplitude * (_render(shape, moved, side) - rendered))
        jacobian = torch.stack(rows, dim=1).flatten(2)
        left = (target - amplitude * rendered).flatten(1)
        normal = jacobian @ jacobian.mT
        # The constant keeps the turn of a circle, which changes nothing, from making this singular.
        normal += torch.diag_embed(damping[:, None] * normal.diagonal(dim1=1, dim2=2) + 1e-4)
        step = torch.linalg.solve(normal, jacobian @ left[..., None])[:, 1:, 0]
        trial = _within_reason(pose + step * nudge, side)
        trial_rendered = _render(shape, trial, side)
        trial_error = _error(trial_rendered, target)
        better = trial_error < error
        error, damping = torch.where(better, trial_error, error), torch.where(better, 0.3 * damping, 10 * damping)
        pose = torch.where(better[:, None], trial, pose)
        rendered = torch.where(better[:, None, None], trial_rendered, rendered)
    return pose, error


def _within_reason(pose: Tensor, side: int) -> Tensor:
    x, y, radius, angle, blur = pose.unbind(dim=1)
    limited = x.clamp(0, side), y.clamp(0, side), radius.clamp(1, side), angle.clamp(-MAX_TURN, MAX_TURN)
    return torch.stack([*limited, blur.clamp(*BLUR)], dim=1)
