"""Labelled boxes of a table's images: read from lists, moved with the crop, padded to one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ldmlab.data.columns import class_ids, class_order
from ldmlab.data.opened import CorruptImage
from ldmlab.data.transforms import Frame
from ldmlab.errors import UserError

FORMATS = ("xyxy_relative", "xyxy_pixels", "xywh_pixels")
"""Corners in [0, 1]; corners in pixels; one corner, width and height in pixels, as COCO has them."""

KEPT_SHARE = 0.25
"""A box of which less than this part of its area is left in the crop is dropped: what it names can hardly be seen."""

TOLERANCE = 1e-3
"""How far rounding may put a relative corner outside of [0, 1]."""

NO_LABELS = "object"
"""The one class of boxes without labels."""

NO_BOX = -1


@dataclass(frozen=True)
class BoxTable:
    """The boxes of all rows of a table, as they are stored.

    Attributes:
        values: float64 (M, 4), all boxes one after another.
        labels: label of each of the M boxes.
        counts: int64 (N,), number of boxes of each row.
    """

    values: np.ndarray
    labels: list[str | int]
    counts: np.ndarray


@dataclass(frozen=True)
class Boxes:
    """The boxes of a split's rows.

    Attributes:
        values: float64 (M, 4), boxes in `box_format`.
        labels: int64 (M,), class of each.
        bounds: int64 (N, 2), the first box of each row, and the first that is not its own any more.
        box_format: one of `FORMATS`.
        max_boxes: K, the places for boxes in every row.
    """

    values: np.ndarray
    labels: np.ndarray
    bounds: np.ndarray
    box_format: str
    max_boxes: int

    def of_rows(self, rows: np.ndarray) -> Boxes:
        """The boxes of some rows, int64 (n,)."""
        return replace(self, bounds=self.bounds[rows])

    def place(self, row: int, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """The boxes of a row in the square that was cut out of its image.

        Returns:
            Corners x0 y0 x1 y1 in [0, 1] of the square, float32 (K, 4), in the table's order, then zeros; and classes,
            int64 (K,), then -1. Boxes are clipped to the square. Those without area and those that lose more than
            three quarters of it are dropped, and the smallest where there are more than K.

        Raises:
            CorruptImage: a box lies beside the image, so that one of them is not what it should be.
        """
        start, end = self.bounds[row]
        corners = self.values[start:end]
        if self.box_format == "xywh_pixels":
            corners = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
        if self.box_format != "xyxy_relative":
            corners = corners / [frame.width, frame.height, frame.width, frame.height]
        beside = ((corners[:, 2:] <= 0) | (corners[:, :2] >= 1)).any(1) & (_area(corners) > 0)
        if beside.any():
            box = ", ".join(f"{number:g}" for number in self.values[start:end][beside][0])
            raise CorruptImage(
                f"the box [{box}] lies beside the image of {frame.width} x {frame.height} pixels; is "
                f"data.boxes_format={self.box_format} right?"
            )
        # an annotator's box may reach a little beyond the image, which is no loss of its area
        corners = frame.into_square(corners.clip(0, 1))
        clipped = corners.clip(0, 1)
        area = _area(clipped)
        kept = np.flatnonzero((area > 0) & (area >= KEPT_SHARE * _area(corners)))
        kept = np.sort(kept[np.argsort(-area[kept], kind="stable")[: self.max_boxes]])
        boxes = np.zeros((self.max_boxes, 4), dtype=np.float32)
        labels = np.full(self.max_boxes, NO_BOX, dtype=np.int64)
        boxes[: len(kept)] = clipped[kept]
        labels[: len(kept)] = self.labels[start:end][kept]
        return boxes, labels


@dataclass(frozen=True)
class BoxColumns:
    """The boxes of a data set's tables, with one number of places and one numbering of classes.

    Attributes:
        tables: the boxes of each table.
        names: the classes in their order, if all tables declare the same; None finds them in the labels.
        box_format: one of `FORMATS`.
        max_boxes: the most places for boxes in an image.
    """

    tables: Mapping[str, BoxTable]
    names: Sequence[str] | None
    box_format: str
    max_boxes: int

    @property
    def places(self) -> int:
        """K, one or more: what the fullest image of all tables needs, and no more than `max_boxes`."""
        return min(self.max_boxes, max(int(table.counts.max(initial=1)) for table in self.tables.values()))

    @cached_property
    def class_order(self) -> list[str | int]:
        """The classes in the order of their ids."""
        if self.names is not None:
            return list(self.names)
        return class_order(chain.from_iterable(table.labels for table in self.tables.values()))

    def of_table(self, name: str) -> Boxes:
        """The boxes of a table's rows."""
        table = self.tables[name]
        ends = np.cumsum(table.counts)
        bounds = np.stack([ends - table.counts, ends], axis=1)
        return Boxes(table.values, class_ids(table.labels, self.class_order), bounds, self.box_format, self.places)


def _area(corners: np.ndarray) -> np.ndarray:
    return (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])


def read_boxes(
    boxes: Sequence[pa.Array],
    labels: Sequence[pa.Array] | None,
    names: Sequence[str] | None,
    *,
    box_format: str,
    where: str,
) -> BoxTable:
    """The boxes in a column of lists of four numbers and, beside it, a column of lists of their labels.

    A row without a list has no boxes; nor does a box count whose label is -1.

    Args:
        boxes: the column's parts, one after another.
        labels: those of the labels' column, of strings or integers; None if boxes have no labels.
        names: names of the labels, if they are integers of a `ClassLabel`.
        box_format: one of `FORMATS`.
        where: what messages call the table.

    Raises:
        UserError: boxes or labels that cannot be what the options say.
    """
    counts = _lengths(boxes)
    rows = np.repeat(np.arange(len(counts)), counts)
    flat = [part.flatten() for part in boxes]
    _check_four(_lengths(flat) == 4, rows, where)
    numbers = [part.flatten().to_numpy(zero_copy_only=False).astype(np.float64) for part in flat]
    values = np.concatenate([np.empty(0), *numbers]).reshape(-1, 4)
    _check_four(np.isfinite(values).all(1), rows, where)
    _check_values(values, rows, box_format, where)
    if labels is None:
        return BoxTable(values, [NO_LABELS] * len(values), counts)

    if bad := np.flatnonzero(_lengths(labels) != counts).tolist():
        raise UserError(
            f"data.box_labels_column: row {bad[0]} of {where} has {_lengths(labels)[bad[0]]} labels for "
            f"{counts[bad[0]]} boxes; give a column with one label a box, or none"
        )
    stored = [label for part in labels for label in part.flatten().to_pylist()]
    for row, label in zip(rows, stored, strict=True):
        if label is None or (names is not None and label >= len(names)):
            problem = "no label" if label is None else f"the label {label}, where {len(names or ())} classes are named"
            raise UserError(
                f"data.box_labels_column: a box in row {row} of {where} has {problem}; repair it, or choose another "
                "column, or none"
            )
    present = np.array([isinstance(label, str) or label >= 0 for label in stored], dtype=bool)
    return BoxTable(
        values[present],
        [label if names is None else names[label] for label, there in zip(stored, present, strict=True) if there],
        np.bincount(rows[present], minlength=len(counts)),
    )


def _lengths(lists: Sequence[pa.Array]) -> np.ndarray:
    """Lengths of the lists in a column's parts, int64; 0 where there is no list."""
    parts = [pc.fill_null(pc.list_value_length(part), 0).to_numpy(zero_copy_only=False) for part in lists]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts]).astype(np.int64)


def _check_four(fine: Any, rows: np.ndarray, where: str) -> None:
    if not fine.all():
        raise UserError(
            f"data.boxes_column: row {rows[int(np.argmin(fine))]} of {where} has a box that is not four numbers; "
            "repair it, or choose another column, or none"
        )


def _check_values(values: np.ndarray, rows: np.ndarray, box_format: str, where: str) -> None:
    def refuse(bad: Any, problem: str, remedy: str) -> None:
        if bad.any():
            first = int(np.argmax(bad))
            box = ", ".join(f"{number:g}" for number in values[first])
            raise UserError(
                f"data.boxes_format={box_format}: the box [{box}] in row {rows[first]} of {where} {problem}; {remedy}, "
                "repair it, or set data.boxes_column=none"
            )

    if box_format == "xyxy_relative":
        outside = ((values < -TOLERANCE) | (values > 1 + TOLERANCE)).any(1)
        refuse(outside, "is not within 0 and 1", "choose xyxy_pixels or xywh_pixels")
    elif len(values) and (values <= 1).all():
        refuse(np.ones(1, dtype=bool), "and all others are within 0 and 1", "choose xyxy_relative")
    if box_format == "xywh_pixels":
        refuse((values[:, 2:] < 0).any(1), "has a negative side", "choose xyxy_pixels")
    else:
        refuse((values[:, 2:] < values[:, :2]).any(1), "ends before it begins", "choose xywh_pixels")
