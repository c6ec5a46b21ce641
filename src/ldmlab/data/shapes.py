"""The embedded data set: scenes of coloured shapes, drawn on demand at any resolution, with no download.

A scene is a pure function of (seed, index): every random number is a hash of seed, index and the number's place in
the recipe, so scene 7 is the same in any batch, in any worker and at any resolution.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldmlab.data.shapes_scores import ShapesScores
from ldmlab.data.shapes_words import CLASS_NAMES, COLOURS, MAX_TURN, RELATIONS, SHAPE_NAMES, SIZES
from ldmlab.data.signed_distance import SHAPES, hull_discs
from ldmlab.errors import UserError
from ldmlab.types import Batch, DataInfo, Oracle

VERSION = 1  # part of the fingerprint: raise it with every change that alters a picture

MARGIN = 0.015  # between an object and the border, and between two objects
MAX_ZOOM = 1.7  # the largest object still moves a little
LAYOUT_TRIES = 16
WAVES = 3
PIXELS_AT_ONCE = 2**18  # in one drawing pass: bounds the memory of large pictures and keeps the passes in cache

_HULLS = hull_discs().numpy()
_REACH = (np.hypot(_HULLS[..., 0], _HULLS[..., 1]) + _HULLS[..., 2]).max(axis=1)
_PALETTE = np.array(list(COLOURS.values()))
_RADII = np.array(list(SIZES.values()))
_PHRASES = [[f"a {size} {name}" for name in CLASS_NAMES] for size in SIZES]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def _splitmix(counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014), a bijection of 64-bit counters."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class _Dice:
    """Uniform numbers in [0, 1) for each scene, handed out in order, so that a call's place is its counter."""

    def __init__(self, seed: int, indices: NDArray[np.uint64]) -> None:
        # 1-element arrays, as NumPy warns of the intended overflow in scalars only
        stream = _splitmix(np.array([seed % 2**64], dtype=np.uint64))
        self._scene = _splitmix(stream ^ _splitmix(indices + np.uint64(1)))[:, None]
        self._used = 0

    def __call__(self, count: int) -> Floats:
        """The next `count` numbers of each scene, (B, count)."""
        place = np.arange(self._used, self._used + count, dtype=np.uint64)
        self._used += count
        return (_splitmix(self._scene + place) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def between(self, low: float, high: float, count: int) -> Floats:
        return low + (high - low) * self(count)

    def choice(self, options: int, count: int) -> Integers:
        return (self(count) * options).astype(np.int64)


@dataclass(frozen=True)
class Scenes:
    """What B scenes contain, in units of the picture's side, y down; K objects each, the first `count` of them real."""

    count: Integers  # (B,)
    shape: Integers  # (B, K)
    colour: Integers  # (B, K)
    size: Integers  # (B, K)
    radius: Floats  # (B, K)
    angle: Floats  # (B, K), counter-clockwise
    centre: Floats  # (B, K, 2)
    rgb: Floats  # (B, K, 3), in [0, 1]
    ground: Floats  # (B, 2, 3), the two colours that the background mixes
    slope: Floats  # (B, 2), of the background's linear gradient in x and y
    waves: Floats  # (B, W, 4): amplitude, frequency in x, frequency in y and phase of the background's waves

    @property
    def present(self) -> NDArray[np.bool_]:
        """(B, K), which objects exist."""
        return np.arange(self.shape.shape[1]) < self.count[:, None]

    def rows(self, start: int, stop: int) -> Scenes:
        """The scenes `start`, ..., `stop - 1` of these."""
        return Scenes(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})


def scenes(seed: int, indices: Sequence[int], max_objects: int, zoom: float = 1.0) -> Scenes:
    """The scenes at `indices` of the endless sequence that `seed` starts, with one to `max_objects` objects each.

    `zoom` multiplies the objects' radii.
    The order of the calls to `dice` is part of the data set: a new number goes to the end.
    """
    dice = _Dice(seed, np.asarray(indices, dtype=np.uint64))
    objects = max_objects
    count = 1 + dice.choice(objects, 1)[:, 0]

    # The first object gives the label; it is the largest of several and differs from the others in shape or colour.
    label = dice.choice(len(CLASS_NAMES), 1)
    other = dice.choice(len(CLASS_NAMES) - 1, objects - 1)
    label = np.concatenate([label, (label + 1 + other) % len(CLASS_NAMES)], axis=1)
    shape, colour = np.divmod(label, len(COLOURS))
    luck = dice(objects)
    alone = (luck[:, :1] * len(SIZES)).astype(np.int64)
    largest = 1 + (luck[:, :1] * (len(SIZES) - 1)).astype(np.int64)
    main = np.where(count[:, None] == 1, alone, largest)
    size = np.concatenate([main, (luck[:, 1:] * main).astype(np.int64)], axis=1)

    radius = zoom * _RADII[size] * dice.between(0.97, 1.03, objects)
    angle = dice.between(-MAX_TURN, MAX_TURN, objects)
    rgb = _PALETTE[colour] * dice.between(0.92, 1.0, objects)[..., None]
    centre = _layout(dice, count, _REACH[shape] * radius)

    # Muted: two greys of middle brightness, each with a tint, so that every colour of the palette stands out.
    grey = dice.between(0.28, 0.52, 1)
    other_grey = grey + np.where(grey < 0.4, 1, -1) * dice.between(0.08, 0.16, 1)
    ground = np.stack([level + dice.between(-0.06, 0.06, 3) for level in (grey, other_grey)], axis=1)
    style = dice.choice(4, 1)  # plain, gradient, stripes, clouds
    direction = 2 * math.pi * dice(WAVES)
    frequency = np.where(style == 2, dice.between(2.0, 4.5, WAVES), dice.between(0.5, 1.5, WAVES))
    amplitude = np.select([style == 2, style == 3], [np.array([0.5, 0, 0]), np.full(WAVES, 0.5 / WAVES)], 0.0)
    unit = np.stack([np.cos(direction[:, 0]), np.sin(direction[:, 0])], axis=1)
    slope = (style == 1) * unit / np.abs(unit).sum(axis=1, keepdims=True)
    phase = 2 * math.pi * dice(WAVES)
    waves = np.stack([amplitude, frequency * np.cos(direction), frequency * np.sin(direction), phase], axis=-1)
    return Scenes(
        count=count,
        shape=shape,
        colour=colour,
        size=size,
        radius=radius,
        angle=angle,
        centre=centre,
        rgb=rgb,
        ground=ground,
        slope=slope,
        waves=waves,
    )


def _layout(dice: _Dice, count: Integers, reach: Floats) -> Floats:
    """Centres (B, K, 2): circles of radius `reach` inside the picture and apart, main object clearly to one side.

    The first fitting one of `LAYOUT_TRIES` layouts: the first try is uniform over the picture, later ones crowd
    objects into corners of their own, and the last sits in the corners, where objects of all sizes fit.
    """
    batch, objects = reach.shape
    corners = np.array([[0, 0], [1, 0], [0, 1]])[:objects]
    corners = np.where(dice(1)[:, :, None] < 0.5, corners, corners[:, ::-1])
    corners = np.abs(corners - dice.choice(2, 2)[:, None, :])
    jitter = dice(LAYOUT_TRIES * objects * 2).reshape(batch, LAYOUT_TRIES, objects, 2)
    place = np.abs(corners[:, None] - np.linspace(1, 0, LAYOUT_TRIES)[:, None, None] * jitter)
    low = (reach + MARGIN)[:, None, :, None]
    centre = low + (1 - 2 * low) * place

    fits = np.ones(place.shape[:2], dtype=bool)
    for a in range(objects):
        for b in range(a + 1, objects):
            offset = np.abs(centre[:, :, a] - centre[:, :, b])
            apart = np.hypot(offset[..., 0], offset[..., 1]) > (reach[:, a] + reach[:, b] + MARGIN)[:, None]
            if (a, b) == (0, 1):
                # "above" is said of the larger offset: a diagonal would make it a matter of opinion
                apart &= offset.max(axis=-1) > 1.4 * offset.min(axis=-1)
            fits &= apart | (count <= b)[:, None]
    fits[:, -1] = True
    return np.take_along_axis(centre, fits.argmax(axis=1)[:, None, None, None], axis=1)[:, 0]


def captions(scene: Scenes) -> list[str]:
    """One English caption per scene, main object first: "a large blue star above a small red circle"."""
    label = (scene.shape * len(COLOURS) + scene.colour).tolist()
    size, count = scene.size.tolist(), scene.count.tolist()
    offset = scene.centre[:, 0] - scene.centre[:, min(1, scene.shape.shape[1] - 1)]
    vertical = np.abs(offset[:, 1]) > np.abs(offset[:, 0])
    relation = np.where(vertical, 2 + (offset[:, 1] > 0), offset[:, 0] > 0).tolist()
    texts = []
    for row, number in enumerate(count):
        phrases = [_PHRASES[s][k] for s, k in zip(size[row][:number], label[row][:number], strict=True)]
        text = f" {RELATIONS[relation[row]]} ".join(phrases[:2])
        texts.append(text if number < 3 else f"{text}, and {phrases[2]}")
    return texts


def boxes(scene: Scenes) -> Floats:
    """Tight boxes (B, K, 4) of the objects, corners x0 y0 x1 y1 in [0, 1]; zeros where there is no object."""
    discs = _HULLS[scene.shape]
    cosine, sine = np.cos(scene.angle)[..., None], np.sin(scene.angle)[..., None]
    x = cosine * discs[..., 0] - sine * discs[..., 1]
    y = -(sine * discs[..., 0] + cosine * discs[..., 1])
    low = np.stack([(x - discs[..., 2]).min(axis=-1), (y - discs[..., 2]).min(axis=-1)], axis=-1)
    high = np.stack([(x + discs[..., 2]).max(axis=-1), (y + discs[..., 2]).max(axis=-1)], axis=-1)
    corners = [scene.centre + scene.radius[..., None] * end for end in (low, high)]
    return np.concatenate(corners, axis=-1).clip(0, 1) * scene.present[..., None]


def draw(scene: Scenes, image_size: int) -> tuple[Tensor, Tensor]:
    """The pictures, float32 (B, 3, S, S) in [-1, 1], and their semantic maps, int64 (B, S, S), for S = `image_size`.

    A pixel of the map is 1 + the shape's number where a shape covers half of it or more, else 0.
    """
    batch, step = len(scene.count), max(1, PIXELS_AT_ONCE // image_size**2)
    if batch > step:
        parts = [draw(scene.rows(start, start + step), image_size) for start in range(0, batch, step)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    covered = _coverage(scene, image_size)
    ground, rgb = (torch.from_numpy((2 * colours - 1).astype(np.float32)) for colours in (scene.ground, scene.rgb))
    mix = _mix(scene, image_size)[:, None]
    image = torch.addcmul(ground[:, 0, :, None, None], (ground[:, 1] - ground[:, 0])[:, :, None, None], mix)
    for k in reversed(range(covered.shape[1])):  # the main object last, on top
        image.lerp_(rgb[:, k, :, None, None], covered[:, k, None])
    # Objects keep apart, so at most one of them covers half a pixel; bytes, as they are the quickest to compare.
    name = torch.from_numpy((1 + scene.shape).astype(np.uint8))[..., None, None]
    semantic = (covered >= 0.5).to(torch.uint8).mul_(name).amax(dim=1).long()
    return image, semantic


def _coverage(scene: Scenes, image_size: int) -> Tensor:
    """Share of each pixel that each object covers, (B, K, S, S)."""
    grid = (np.arange(image_size) + 0.5) / image_size
    covered = torch.zeros(*scene.shape.shape, image_size, image_size)
    for number, distance in enumerate(SHAPES.values()):
        row, k = np.nonzero((scene.shape == number) & scene.present)
        if len(row) == 0:
            continue
        angle, radius, centre = scene.angle[row, k, None], scene.radius[row, k, None], scene.centre[row, k]
        right, up = (grid - centre[:, :1]) / radius, (centre[:, 1:] - grid) / radius
        cosine, sine = np.cos(angle), np.sin(angle)
        parts = np.stack([cosine * right, sine * up, -sine * right, cosine * up]).astype(np.float32)
        x_right, x_up, y_right, y_up = torch.from_numpy(parts)
        away = distance(x_right[:, None, :] + x_up[:, :, None], y_right[:, None, :] + y_up[:, :, None])
        pixels = torch.from_numpy((-image_size * radius).astype(np.float32))[..., None]
        covered[row, k] = away.mul_(pixels).add_(0.5).clamp_(0, 1)
    return covered


def _mix(scene: Scenes, image_size: int) -> Tensor:
    """How much of the second background colour each pixel has, (B, S, S) in [0, 1]."""
    grid = (np.arange(image_size) + 0.5) / image_size
    slope = (scene.slope[..., None] * (grid - 0.5)).astype(np.float32)
    across, down = torch.from_numpy(slope).unbind(1)
    mix = (0.5 + across)[:, None, :] + down[:, :, None]
    # sin(a + b) = sin a cos b + cos a sin b, so that sines are taken of S numbers and not of S x S
    a = 2 * math.pi * scene.waves[..., 1:2] * grid + scene.waves[..., 3:]
    b = 2 * math.pi * scene.waves[..., 2:3] * grid
    amplitude = scene.waves[..., :1]
    for in_x, in_y in ((amplitude * np.sin(a), np.cos(b)), (amplitude * np.cos(a), np.sin(b))):
        rows, columns = torch.from_numpy(in_x.astype(np.float32)), torch.from_numpy(in_y.astype(np.float32))
        for wave in range(WAVES):
            mix.addcmul_(rows[:, wave, None, :], columns[:, wave, :, None])
    return mix


class ShapesSplit:
    """The scenes `first`, ..., `first + length - 1`, read a batch at a time."""

    def __init__(self, first: int, length: int, image_size: int, seed: int, max_objects: int, zoom: float) -> None:
        self.first, self.length = first, length
        self.image_size, self.seed, self.max_objects, self.zoom = image_size, seed, max_objects, zoom

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The scenes at `indices`, each in [0, len), as one batch.

        Every key of `Batch` is there; K is `max_objects`. `label` is the class of the main object: the only one, or
        the largest, which no other object equals in size. IndexError for an index out of range.
        """
        for index in indices:
            if not 0 <= index < self.length:
                raise IndexError(f"index {index} is out of range: this split of Shapes has {self.length} images")
        scene = scenes(self.seed, [self.first + int(index) for index in indices], self.max_objects, self.zoom)
        image, semantic = draw(scene, self.image_size)
        return {
            "image": image,
            "label": torch.from_numpy(scene.shape[:, 0] * len(COLOURS) + scene.colour[:, 0]),
            "caption": captions(scene),
            "semantic": semantic,
            "boxes": torch.from_numpy(boxes(scene).astype(np.float32)),
            "box_labels": torch.from_numpy(np.where(scene.present, scene.shape, -1)),
        }


class Shapes:
    """Scenes of one to `max_objects` coloured shapes on muted backgrounds, with labels, captions, maps and boxes.

    Eight shapes, eight colours and three sizes; `zoom` makes the objects larger, where there is only one. Objects lie
    inside the picture and do not overlap. Validation scenes are those that follow the training scenes, so both splits
    depend on `seed`, `max_objects`, `zoom` and `train_images` alone; `image_size` changes the resolution of a scene
    and nothing else. UserError for arguments out of range.
    """

    def __init__(
        self,
        image_size: int = 32,
        train_images: int = 50_000,
        val_images: int = 5_000,
        seed: int = 0,
        max_objects: int = 3,
        zoom: float = 1.0,
    ) -> None:
        if image_size < 8:
            raise UserError(f"data.image_size is {image_size}: shapes need at least 8 pixels a side")
        if not 1 <= max_objects <= 3:
            raise UserError(f"data.max_objects is {max_objects}: choose 1, 2 or 3")
        if not 0.5 <= zoom <= MAX_ZOOM or (zoom > 1 and max_objects > 1):
            raise UserError(f"data.zoom is {zoom}: choose 0.5 to {MAX_ZOOM}, and at most 1 with several objects")
        for name, number in (("train_images", train_images), ("val_images", val_images)):
            if number < 0:
                raise UserError(f"data.{name} is {number}: choose 0 or more")
        self._first = {"train": 0, "val": train_images}
        self._length = {"train": train_images, "val": val_images}
        self._parameters: dict[str, Any] = {
            "image_size": image_size,
            "seed": seed,
            "max_objects": max_objects,
            "zoom": zoom,
        }
        recipe = {**self._parameters, "train_images": train_images, "val_images": val_images, "version": VERSION}
        self._info = DataInfo(
            name="shapes",
            image_size=image_size,
            fingerprint=hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
            class_names=CLASS_NAMES,
            semantic_classes=("background", *SHAPE_NAMES),
            box_classes=SHAPE_NAMES,
            has_captions=True,
        )

    @property
    def info(self) -> DataInfo:
        """Names and sizes; 64 classes, shape by shape in each colour, such as "red circle"."""
        return self._info

    def split(self, name: str) -> ShapesSplit:
        """The split `name`, either "train" or "val"."""
        if name not in self._length:
            raise UserError(f'Shapes has no split "{name}": choose "train" or "val"')
        return ShapesSplit(self._first[name], self._length[name], **self._parameters)

    def oracle(self) -> Oracle:
        """Reads in pictures what they show, to tell whether a model draws what it was told."""
        return ShapesScores(self._parameters["max_objects"], self._parameters["zoom"])
