"""A split before decoding: compressed images with their labels and captions, maps and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ldmlab.data.boxes import Boxes
from ldmlab.data.semantic import SemanticMaps


class EncodedSplit(Protocol):
    """What a data set gives to be decoded. Rows count from 0 to `len - 1` within the split."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class of every row, int64 (N,), or None."""
        ...

    @property
    def captions(self) -> list[str] | None:
        """Caption of every row, or None."""
        ...

    @property
    def semantic(self) -> SemanticMaps | None:
        """Semantic map of every row, or None."""
        ...

    @property
    def boxes(self) -> Boxes | None:
        """Labelled boxes of every row, or None."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> list[Any]:
        """The images of `rows`, each in any form that `decode` takes. Called from several threads."""
        ...

    def describe(self, row: int) -> str:
        """Where a user finds the row: a file's name, or a file and a row in it."""
        ...
