"""Scores for pictures of the embedded data set: does a picture show what its model was told?

`ShapesOracle` says what each picture shows. A score is float32 (B,), one number from 0 to 1 for each picture, and NaN
where it does not apply, such as the relation of a lone object: average with `nanmean`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ldmlab.data.shapes_oracle import SeenObject, ShapesOracle
from ldmlab.data.shapes_words import COLOURS, RELATIONS, SHAPE_NAMES, SIZES
from ldmlab.types import Batch

Seen = Sequence[Sequence[SeenObject]]  # as `ShapesOracle` returns it
ToldObject = tuple[int | None, int | None, int | None]

_VOCABULARY = tuple({word: number for number, word in enumerate(words)} for words in (SHAPE_NAMES, COLOURS, SIZES))
_BARRED = -1e3  # gain of a pair that an assignment must not contain


@dataclass(frozen=True)
class Told:
    """What a caption says. None stands for what it leaves open."""

    objects: tuple[ToldObject, ...]  # index into SHAPE_NAMES, COLOURS and SIZES of each
    relation: int | None = None  # of the first object to the second, index into RELATIONS


def read_caption(caption: str) -> Told | None:
    """What `caption` tells, or None if it names no object.

    It understands the data set's captions and what is like them: objects named by size, colour and shape in this order,
    any of them left out but not both colour and shape, and one of RELATIONS between the first two.
    """
    objects: list[ToldObject] = []
    between: list[str] = []
    told: list[int | None] = [None, None, None]
    for word in [*re.findall(r"[a-z]+", caption.lower()), ""]:
        kind = next((kind for kind, words in enumerate(_VOCABULARY) if word in words), None)
        # Adjectives come before the shape: whatever does not go on with the object ends it.
        if any(number is not None for number in told[: 3 if kind is None else kind + 1]):
            if told[0] is not None or told[1] is not None:
                objects.append((told[0], told[1], told[2]))
            told = [None, None, None]
        if kind is not None:
            told[kind] = _VOCABULARY[kind][word]
        elif len(objects) == 1:
            between.append(word)
    if not objects:
        return None
    words = " ".join(between)
    relation = next((number for number, phrase in enumerate(RELATIONS) if phrase in words), None)
    return Told(tuple(objects), relation if len(objects) > 1 else None)


def score_captions(seen: Seen, captions: Sequence[str]) -> dict[str, Tensor]:
    """How much of each caption its picture shows.

    Told and seen objects are matched one to one, so that as many told things hold as possible. "shape", "colour" and
    "size" are the share of the told shapes, colours and sizes that hold; "relation" is 1 if the first two objects
    stand to each other as told, 0 if not or if either has nothing that was told of it; "all" is 1 if everything told
    holds and as many objects are seen as told.
    """
    scores = _unscored("shape", "colour", "size", "relation", "all", count=len(captions))
    for row, (objects, caption) in enumerate(zip(seen, captions, strict=True)):
        told = read_caption(caption)
        if told is None:
            continue
        holds = _holds(told, objects)
        matched = _match(told, objects, holds.sum(axis=2))
        for kind, name in enumerate(("shape", "colour", "size")):
            asked = [number for number, words in enumerate(told.objects) if words[kind] is not None]
            if asked:
                right = [holds[number, matched[number], kind] for number in asked if number in matched]
                scores[name][row] = sum(right) / len(asked)
        if told.relation is not None:
            both = 0 in matched and 1 in matched
            scores["relation"][row] = both and _relation(objects[matched[0]], objects[matched[1]]) == told.relation
        applied = torch.stack([scores[name][row] for name in ("shape", "colour", "size", "relation")])
        everything = bool((applied.isnan() | (applied == 1)).all())
        scores["all"][row] = everything and len(objects) == len(told.objects)
    return scores


def score_labels(seen: Seen, labels: Tensor) -> dict[str, Tensor]:
    """Whether the largest object has the shape and the colour of the class in `labels`, int64 (B,).

    "shape" and "colour" apart, and "label" for both; 0 where nothing is seen.
    """
    scores = _unscored("label", "shape", "colour", count=len(labels))
    for row, (objects, label) in enumerate(zip(seen, labels.tolist(), strict=True)):
        shape, colour = divmod(label, len(COLOURS))
        scores["shape"][row] = bool(objects) and objects[0].shape == shape
        scores["colour"][row] = bool(objects) and objects[0].colour == colour
    scores["label"] = scores["shape"] * scores["colour"]
    return scores


def score_boxes(seen: Seen, boxes: Tensor, box_labels: Tensor) -> dict[str, Tensor]:
    """How well objects fill the told `boxes`, (B, K, 4) as x0 y0 x1 y1 in [0, 1].

    "iou" is the mean over the told boxes of intersection over union with the object matched to it, where boxes and
    objects are matched one to one for the largest sum. `box_labels`, int64 (B, K), are shapes, and -1 for no box; an
    object of another shape counts 0. NaN where no box is told.
    """
    scores = _unscored("iou", count=len(boxes))
    for row, objects in enumerate(seen):
        told = [
            (box, label) for box, label in zip(boxes[row].tolist(), box_labels[row].tolist(), strict=True) if label >= 0
        ]
        if told:
            gain = np.zeros((len(told), len(objects)))
            for a, (box, label) in enumerate(told):
                for b, item in enumerate(objects):
                    gain[a, b] = _iou(box, item.box) if item.shape == label else 0.0
            scores["iou"][row] = gain[linear_sum_assignment(gain, maximize=True)].sum() / len(told)
    return scores


def score_semantic(maps: Tensor, told: Tensor, classes: int) -> dict[str, Tensor]:
    """How well the seen `maps` agree with the `told` ones, both int64 (B, S, S) with values below `classes`.

    "iou" is the mean of intersection over union, over the classes, background included, that either map of the
    picture has; "accuracy" is the share of pixels.
    """
    batch = len(told)
    place = torch.arange(batch, device=told.device)[:, None] * classes**2
    pairs = place + told.flatten(1) * classes + maps.to(told.device).flatten(1)
    confusion = torch.bincount(pairs.flatten(), minlength=batch * classes**2).view(batch, classes, classes).cpu()
    both = confusion.diagonal(dim1=1, dim2=2).float()
    either = confusion.sum(dim=1) + confusion.sum(dim=2) - both
    return {"iou": (both / either).nanmean(dim=1), "accuracy": both.sum(dim=1) / confusion.sum(dim=(1, 2))}


class ShapesScores:
    """The oracle of `shapes` as those use it who measure models: an `Oracle`."""

    def __init__(self, max_objects: int, zoom: float):
        self.oracle = ShapesOracle(max_objects, zoom)

    def scores(self, images: Tensor, told: Batch, entries: Sequence[str]) -> dict[str, Tensor]:
        """How well images (B, 3, S, S) in [-1, 1] show what `entries` of `told` say, and how alike to shapes they are.

        Named by the entry and what of it: "label", "label_colour", "caption_relation", "boxes_iou", "semantic_iou".
        """
        seen, maps = self.oracle.read(images)
        found: dict[str, dict[str, Tensor]] = {}
        if "label" in entries:
            found["label"] = score_labels(seen, told["label"])
        if "caption" in entries:
            found["caption"] = score_captions(seen, told["caption"])
        if "boxes" in entries:
            found["boxes"] = score_boxes(seen, told["boxes"], told["box_labels"])
        if "semantic" in entries:
            found["semantic"] = score_semantic(maps, told["semantic"], 1 + len(SHAPE_NAMES))
        named = {
            name if name == entry else f"{entry}_{name}": value
            for entry, scores in found.items()
            for name, value in scores.items()
        }
        return {**named, "likeness": torch.tensor([_mean([item.likeness for item in objects]) for objects in seen])}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _unscored(*names: str, count: int) -> dict[str, Tensor]:
    return {name: torch.full((count,), torch.nan) for name in names}


def _holds(told: Told, seen: Sequence[SeenObject]) -> NDArray[np.bool_]:
    """Whether the shape, colour and size that are told of an object are those of a seen one, (told, seen, 3)."""
    pairs = [
        [
            told_number is not None and told_number == seen_number
            for told_number, seen_number in zip(words, it, strict=True)
        ]
        for words in told.objects
        for it in ((item.shape, item.colour, item.size) for item in seen)
    ]
    return np.array(pairs, dtype=bool).reshape(len(told.objects), len(seen), 3)


def _match(told: Told, seen: Sequence[SeenObject], gain: NDArray[np.int64]) -> dict[int, int]:
    """The seen object for each told one, without pairs that have nothing in common.

    Of assignments with the same gain, such as of two red circles, one in which the told relation holds.
    """
    best, chosen = _assign(gain)
    if told.relation is not None:
        for a, b in np.ndindex(len(seen), len(seen)):
            if a != b and gain[0, a] and gain[1, b] and _relation(seen[a], seen[b]) == told.relation:
                forced = gain.astype(float)
                forced[0], forced[1] = _BARRED, _BARRED
                forced[0, a], forced[1, b] = gain[0, a], gain[1, b]
                total, assignment = _assign(forced)
                if total == best:
                    return assignment
    return chosen


def _assign(gain: NDArray[np.int64] | NDArray[np.float64]) -> tuple[float, dict[int, int]]:
    rows, columns = linear_sum_assignment(gain, maximize=True)
    pairs = {int(row): int(column) for row, column in zip(rows, columns, strict=True) if gain[row, column] > 0}
    return float(gain[rows, columns].sum()), pairs


def _relation(first: SeenObject, second: SeenObject) -> int:
    """What a caption would say of `first` to `second`, index into RELATIONS: the larger offset counts."""
    right, down = first.centre[0] - second.centre[0], first.centre[1] - second.centre[1]
    return 2 + (down > 0) if abs(down) > abs(right) else int(right > 0)


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    width = max(min(one[2], other[2]) - max(one[0], other[0]), 0.0)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / max(areas - width * height, 1e-9)
