"""What a picture of the embedded data set shows, read from its pixels alone and without any training.

The oracle undoes `draw`. The background is the smooth continuation of the muted pixels; every pixel gets the share of
it that an object covers; covered pixels that hang together are an object; and an object is of the shape whose
rendering, moved, scaled, turned and blurred by Levenberg-Marquardt steps, fits its coverage best. Nothing is asked of
a picture but coloured or white objects on grey, so pictures made by a model can be judged too (`shapes_scores`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ldmlab.data.shapes_fit import Fit, Floats, fit_shapes, moments
from ldmlab.data.shapes_words import COLOURS, SIZES
from ldmlab.data.signed_distance import hull_discs

# Of a pixel of the background, at most; the data set's differ by 0.12 between channels and stay below 0.7. The last is
# the distance from the median pixel, as objects cover less than half of a picture.
MUTED_CHROMA, MUTED_BRIGHTNESS, UNUSUAL = 0.3, 0.75, 0.25
COVERED = 0.4  # share of object in a pixel that belongs to one; below a half, for blurred pictures
SURELY_COVERED = 0.8  # of the highest share: touching objects part at this level, which no single object does
SPECK = 0.35  # what is smaller than this share of the smallest object is none
OVERSIZE = 2.0  # nor is what covers more than this multiple of the largest one, such as a picture all red
SPLIT_PENALTY = 0.05  # what one object explains nearly as well as several is one
SHADES = (0.85, 1.05)  # factors of a palette colour that are read as that colour; the data set's own are 0.92 to 1
COARSE_SIDE = 32  # pictures of twice as many pixels a side are halved while shapes compete
IMAGES_AT_ONCE = 256  # bounds memory

_PALETTE = torch.tensor(list(COLOURS.values()))
_RADII = torch.tensor(list(SIZES.values()))
_HULLS = hull_discs().float()

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SeenObject:
    """One object that a picture shows; places and lengths in units of the picture's side, y down."""

    shape: int  # index into SHAPE_NAMES
    colour: int  # index into COLOURS
    size: int  # index into SIZES
    box: tuple[float, float, float, float]  # x0 y0 x1 y1 in [0, 1]
    centre: tuple[float, float]  # origin of the shape's own coordinates, as in a scene
    area: float  # share of the picture
    likeness: float  # 0 to 1: soft intersection over union of the object with the best rendering of its shape


@dataclass(frozen=True)
class _Picture:
    number: int  # in its batch
    pixels: Floats  # (3, S, S) in [0, 1]
    ground: Floats  # (3, S, S), the background
    covered: Floats  # (S, S), by an object of any colour
    colour: Integers  # (S, S), index into COLOURS


@dataclass(frozen=True)
class _Region:
    """A window of a picture with what may be one object."""

    picture: _Picture
    component: int
    hypothesis: int  # 0: the component is one object; 1, 2: it was divided
    rows: slice
    columns: slice
    own: Mask  # the pixels that are not nearer to another object
    share: Floats  # coverage by the object's own colour, zero outside `own`; about 1 inside, noise goes below 0


class ShapesOracle:
    """Reads pictures of `shapes`, at any resolution, given the data set's `max_objects` and `zoom`.

    With `max_objects` 1 what hangs together is never taken for several objects. A picture that shows more objects than
    `max_objects` gets all of them: that is a fault, and scores must see it.
    """

    def __init__(self, max_objects: int = 3, zoom: float = 1.0) -> None:
        self.max_objects, self.zoom = max_objects, zoom
        areas = moments()[0]
        self._smallest = SPECK * areas.min().item() * (zoom * _RADII.min().item()) ** 2
        self._largest = OVERSIZE * areas.max().item() * (zoom * _RADII.max().item()) ** 2

    def __call__(self, images: Tensor) -> list[list[SeenObject]]:
        """The objects of each of `images`, float (B, 3, S, S) in [-1, 1]; an empty list where there is none.

        The largest object comes first. As in the data set, large is what has a large radius, whatever its area.
        ValueError for images of another shape.
        """
        return self.read(images)[0]

    def semantic(self, images: Tensor) -> Tensor:
        """The maps, int64 (B, S, S), of `images`, float (B, 3, S, S) in [-1, 1]: 0 background, else 1 + shape."""
        return self.read(images)[1]

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[list[list[SeenObject]], Tensor]:
        """The objects and the maps, for the time that either takes; see `__call__` and `semantic`."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(f"the oracle reads images of shape (B, 3, S, S), not {tuple(images.shape)}")
        seen: list[list[SeenObject]] = []
        maps = torch.zeros(len(images), *images.shape[2:], dtype=torch.int64)
        with one_thread():
            for start in range(0, len(images), IMAGES_AT_ONCE):
                stop = start + IMAGES_AT_ONCE
                seen += self._read(images[start:stop].detach().float().cpu(), maps[start:stop])
        return seen, maps

    def _read(self, images: Tensor, maps: Tensor) -> list[list[SeenObject]]:
        """The objects of `images`, and their pixels written to `maps`, zeros (B, S, S)."""
        side = images.shape[-1]
        pixels = (images.nan_to_num(0.0).clamp(-1, 1) + 1) / 2
        ground = _background(pixels)
        arrays = (array.numpy() for array in (pixels, ground, *_coverage(pixels, ground)))
        regions: list[_Region] = []
        for number, picture in enumerate(zip(*arrays, strict=True)):
            regions += _regions(_Picture(number, *picture), self._smallest * side**2, self.max_objects > 1)
        found: list[list[tuple[float, SeenObject]]] = [[] for _ in images]
        fits = fit_shapes([region.share for region in regions], max(1, side // COARSE_SIDE))
        for region, fit in _most_likely(regions, fits):
            item = self._describe(region, fit, side)
            if item.area > self._largest:
                continue
            inside = region.own & (region.share > fit.amplitude / 2)
            maps[region.picture.number, region.rows, region.columns][torch.from_numpy(inside)] = 1 + fit.shape
            found[region.picture.number].append((fit.pose[2], item))
        return [[seen for _, seen in sorted(objects, key=lambda pair: -pair[0])] for objects in found]

    def _describe(self, region: _Region, fit: Fit, side: int) -> SeenObject:
        x, y, radius, angle, _ = fit.pose
        x, y, radius = (x + region.columns.start) / side, (y + region.rows.start) / side, radius / side
        cosine, sine, discs = math.cos(angle), math.sin(angle), _HULLS[fit.shape]
        right, down = cosine * discs[:, 0] - sine * discs[:, 1], -sine * discs[:, 0] - cosine * discs[:, 1]
        reach = discs[:, 2]
        x0, x1 = x + radius * (right - reach).min().item(), x + radius * (right + reach).max().item()
        y0, y1 = y + radius * (down - reach).min().item(), y + radius * (down + reach).max().item()
        return SeenObject(
            shape=fit.shape,
            colour=_colour(region, fit.rendered),
            size=int((radius / (self.zoom * _RADII)).log().abs().argmin()),
            box=(max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0)),
            centre=(x, y),
            area=max(float(region.share.sum()) / fit.amplitude / side**2, 0.0),
            likeness=fit.likeness,
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Without threads, which wait for each other in many small operations: seven times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# Pixels


def _background(pixels: Tensor) -> Tensor:
    """What lies behind the objects of `pixels`, both (B, 3, S, S) in [0, 1]."""
    brightest, darkest = pixels.amax(dim=1, keepdim=True), pixels.amin(dim=1, keepdim=True)
    muted = (brightest - darkest < MUTED_CHROMA) & (brightest < MUTED_BRIGHTNESS)
    ground = pixels.flatten(2).median(dim=2).values[..., None, None]
    reach = max(1, round(pixels.shape[-1] / 16))  # the borders of objects are blurred
    for _ in range(2):
        usual = muted & ((pixels - ground).abs().amax(dim=1, keepdim=True) < UNUSUAL)
        weight = 1 - F.max_pool2d(1 - usual.float(), 2 * reach + 1, stride=1, padding=reach)
        ground = _continue(pixels, weight)
    return ground


def _continue(pixels: Tensor, weight: Tensor) -> Tensor:
    """Means of `pixels` with `weight` (B, 1, S, S), as local as there is weight nearby."""
    side = pixels.shape[-1]
    place = torch.arange(side) / side
    ground = torch.full_like(pixels, 0.42)
    for width in (1.0, 0.3, 0.1, 0.04, 0.02):
        blur = torch.exp(-0.5 * ((place[:, None] - place) / width) ** 2)
        blur /= blur.sum(dim=1, keepdim=True)
        ground = (blur @ (weight * pixels) @ blur.T + 0.01 * ground) / (blur @ weight @ blur.T + 0.01)
    return ground


def _coverage(pixels: Tensor, ground: Tensor) -> tuple[Tensor, Tensor]:
    """How much of each pixel an object covers, (B, S, S) in [0, 1], and of which colour, int64 (B, S, S).

    A pixel lies on the line from the background to the object's colour: the nearest line tells the colour, and the
    place along it the coverage.
    """
    offset = pixels - ground
    best = torch.full_like(offset[:, 0], torch.inf)
    covered, colour = torch.zeros_like(best), torch.zeros_like(best, dtype=torch.int64)
    for number, tint in enumerate(0.96 * _PALETTE):
        line = tint[:, None, None] - ground
        share = ((offset * line).sum(dim=1) / (line * line).sum(dim=1).clamp_min(1e-3)).clamp(0, 1)
        away = (offset - share[:, None] * line).square().sum(dim=1)
        nearer = away < best
        best, covered = torch.where(nearer, away, best), torch.where(nearer, share, covered)
        colour[nearer] = number
    return covered, colour


def _colour(region: _Region, rendered: Floats) -> int:
    """The palette's colour for what, mixed with the background as `rendered` says, comes closest to the pixels."""
    weight = rendered * region.own
    pixels, ground = (array[:, region.rows, region.columns] for array in (region.picture.pixels, region.picture.ground))
    mixed = (weight * (pixels - (1 - rendered) * ground)).sum(axis=(1, 2)) / max((weight * rendered).sum(), 1e-6)
    tint = torch.from_numpy(mixed)
    shade = ((tint * _PALETTE).sum(dim=1) / _PALETTE.square().sum(dim=1)).clamp(*SHADES)
    return int((tint - shade[:, None] * _PALETTE).norm(dim=1).argmin())


# Regions


def _regions(picture: _Picture, smallest: float, divide: bool) -> Iterator[_Region]:
    """The components of `picture`, each as a whole and, where it falls apart into levels or colours, as its parts."""
    components = _label(picture.covered >= COVERED, smallest)
    cells = _nearest(components)
    for component in range(1, components.max() + 1):
        inside = components == component
        hypotheses = [inside.astype(np.int64)]
        if divide:
            peak = np.quantile(picture.covered[inside], 0.9)
            cores = _label(inside & (picture.covered >= SURELY_COVERED * peak), smallest / 2)
            colours = np.zeros_like(cores)
            for colour in range(len(COLOURS)):
                alike = _label(inside & (picture.colour == colour), smallest)
                colours += np.where(alike > 0, alike + colours.max(), 0)
            hypotheses += [parts for parts in (cores, colours) if parts.max() > 1]
        for hypothesis, parts in enumerate(hypotheses):
            nearest = _nearest(parts)
            for part in range(1, parts.max() + 1):
                own = (cells == component) & (nearest == part)
                yield _cut(picture, component, hypothesis, own, own & inside)


def _label(mask: Mask, smallest: float) -> Integers:
    """Numbers 1, 2, ... of the components of `mask`, diagonals included, of at least `smallest` pixels; else 0."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= smallest
    keep[0] = False
    return (np.cumsum(keep) * keep)[labels]


def _nearest(labels: Integers) -> Integers:
    """The number of the component that is nearest to each pixel."""
    if labels.max() <= 1:
        return np.full_like(labels, labels.max())
    rows, columns = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return labels[rows, columns]


def _cut(picture: _Picture, component: int, hypothesis: int, own: Mask, inside: Mask) -> _Region:
    """The region round `inside`, with a rim that holds its blurred border."""
    along = [np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0)]
    rim = 2 + max(len(along[0]), len(along[1])) // 8
    rows, columns = (slice(max(int(places[0]) - rim, 0), int(places[-1]) + rim + 1) for places in along)
    own, inside, covered = own[rows, columns], inside[rows, columns], picture.covered[rows, columns]
    pixels, ground = picture.pixels[:, rows, columns], picture.ground[:, rows, columns]
    # The line is to the colour that the object has, not to the palette's: odd colours are covered no less.
    weight = inside * covered**4
    tint = (weight * pixels).sum(axis=(1, 2), keepdims=True) / weight.sum()
    line = tint - ground
    share = ((pixels - ground) * line).sum(axis=0) / np.maximum((line * line).sum(axis=0), 1e-3)
    return _Region(picture, component, hypothesis, rows, columns, own, own * share.clip(-1, 2).astype(np.float32))


def _most_likely(regions: list[_Region], fits: list[Fit]) -> list[tuple[_Region, Fit]]:
    """Of each component the division that explains most of it."""
    components: dict[tuple[int, int], dict[int, list[tuple[_Region, Fit]]]] = {}
    for region, fit in zip(regions, fits, strict=True):
        hypotheses = components.setdefault((region.picture.number, region.component), {})
        hypotheses.setdefault(region.hypothesis, []).append((region, fit))

    def explained(item: tuple[int, list[tuple[_Region, Fit]]]) -> float:
        hypothesis, parts = item
        both = either = 0.0
        for region, fit in parts:
            covered = region.own * region.picture.covered[region.rows, region.columns]
            both += float(np.minimum(covered, fit.rendered).sum())
            either += float(np.maximum(covered, fit.rendered).sum())
        return both / either - SPLIT_PENALTY * (hypothesis > 0)

    return [pair for hypotheses in components.values() for pair in max(hypotheses.items(), key=explained)[1]]
