"""Some rows of a table of the Hugging Face `datasets` library, not decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ldmlab.data.boxes import Boxes
from ldmlab.data.semantic import SemanticMaps

if TYPE_CHECKING:
    from datasets import Dataset


class StoredImages:
    """A column of images of a `datasets.Dataset`, not decoded; `rows` are those that take part, int64 (N,)."""

    def __init__(self, dataset: Dataset, column: str, rows: np.ndarray) -> None:
        # the format "arrow" gives images as they are stored: bytes, a path, or both
        self._images = dataset.select_columns([column]).with_format("arrow")
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int]) -> list[Any]:
        """The stored images of some of the rows that take part, counted among these."""
        table = self._images[self.rows[np.asarray(rows, dtype=np.int64)].tolist()]
        return table.column(0).to_pylist()


class TableSplit:
    """An `EncodedSplit` of some rows of a `datasets.Dataset`.

    Args:
        images: the images of these rows.
        labels: their classes, int64 (N,), or None.
        captions: their texts, or None.
        semantic: their maps, or None.
        boxes: their boxes, or None.
        describe_row: says where a row of the table lies, given its number and its undecoded image.
    """

    def __init__(
        self,
        images: StoredImages,
        labels: np.ndarray | None,
        captions: list[str] | None,
        semantic: SemanticMaps | None,
        boxes: Boxes | None,
        describe_row: Callable[[int, Any], str],
    ) -> None:
        self._images, self._describe_row = images, describe_row
        self.labels, self.captions, self.semantic, self.boxes = labels, captions, semantic, boxes
        self.read = images.read

    def __len__(self) -> int:
        return len(self._images)

    def describe(self, row: int) -> str:
        """File, or file and row."""
        return self._describe_row(int(self._images.rows[row]), self.read([row])[0])
