"""Which conditions a grid of samples shows."""

from __future__ import annotations

from ldmlab.conditioners.base import Conditioners
from ldmlab.data.loader import in_order, random_subset
from ldmlab.tasks.quality import seed_of, without_images
from ldmlab.types import Batch, ImageData

LOOKED_THROUGH = 2_000
BATCH = 100


def grid_conditions(data: ImageData, conditioner: Conditioners, seed: int) -> tuple[Batch, list[int], int]:
    """Conditions of the images of a sample grid, as a batch without images; a seed for each; and the grid's columns.

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
    found: list[list[int]] = [[] for _ in range(shown)]
    order = random_subset(len(val), LOOKED_THROUGH, seed=0)
    start = 0
    for batch in in_order(val, order, BATCH):
        labels = batch["label"].tolist() if classes else [0] * len(batch["image"])
        for row, label in zip(order[start : start + BATCH], labels, strict=True):
            if label < shown and len(found[label]) < each:
                found[label].append(row)
        start += BATCH
        if all(len(rows) == each for rows in found):
            break
    # a class with fewer than `each` images shows them in turn
    rows = [rows[i % len(rows)] for i in range(each) for rows in found if rows]
    seeds = [seed_of(seed, place) for place in range(len(rows))]
    batch = val.__getitems__(rows)
    return without_images({**batch, **conditioner.tell(batch, seeds)}), seeds, columns
