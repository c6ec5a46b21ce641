"""Which conditions a grid of samples shows."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmlab.data.loader import in_order, random_subset
from ldmlab.types import Batch, ImageData

LOOKED_THROUGH = 2_000
BATCH = 100


def grid_conditions(data: ImageData) -> tuple[Batch, int, int]:
    """Conditions of the images of a sample grid, as a batch without images; how many images; and the grid's columns.

    Labelled data: up to ten classes have a column each, of four images; of more, the first 64 are shown once, eight in
    a row. Other data: 40 images' conditions in ten columns. The conditions come from the val split, where up to 2,000
    images are looked through; a class that is not among them is left out.
    """
    val = data.split("val")
    classes = data.info.num_classes
    if not classes:
        shown, each, columns = 1, 40, 10
    elif classes <= 10:
        shown, each, columns = classes, 4, classes
    else:
        shown, each, columns = min(classes, 64), 1, 8
    found: list[list[tuple[int, int]]] = [[] for _ in range(shown)]
    batches: list[Batch] = []
    for batch in in_order(val, random_subset(len(val), LOOKED_THROUGH, seed=0), BATCH):
        labels = batch["label"].tolist() if classes else [0] * len(batch["image"])
        batches.append({key: value for key, value in batch.items() if key != "image"})
        for row, label in enumerate(labels):
            if label < shown and len(found[label]) < each:
                found[label].append((len(batches) - 1, row))
        if all(len(rows) == each for rows in found):
            break
    # a class with fewer than `each` images shows them in turn
    places = [rows[i % len(rows)] for i in range(each) for rows in found if rows]
    conditions = {key: _gather([batch[key] for batch in batches], places) for key in batches[0]}
    return conditions, len(places), columns


def _gather(parts: list[Tensor] | list[list], places: list[tuple[int, int]]) -> Tensor | list:
    values = [parts[batch][row] for batch, row in places]
    return torch.stack(values) if isinstance(values[0], Tensor) else values
