from types import SimpleNamespace

import pytest
import torch

from ldmlab.conditioners.base import Conditioners
from ldmlab.data.shapes import CLASS_NAMES, Shapes
from ldmlab.tasks.grid import grid_conditions

NOBODY = Conditioners({})


class Labelled:
    """Data of `classes` classes (0: none), row i having class i % classes."""

    def __init__(self, classes, length=500):
        self.info = SimpleNamespace(num_classes=classes)
        self.classes, self.length = classes, length

    def split(self, name):
        assert name == "val"
        return self

    def __len__(self):
        return self.length

    def __getitems__(self, rows):
        batch = {"image": torch.zeros(len(rows), 3, 8, 8), "caption": [f"image {row}" for row in rows]}
        return batch | ({"label": torch.tensor(rows) % self.classes} if self.classes else {})


@pytest.mark.parametrize(("classes", "columns", "images"), [(1, 1, 4), (10, 10, 40), (30, 8, 30), (90, 8, 64)])
def test_classes_are_in_order(classes, columns, images):
    conditions, seeds, found = grid_conditions(Labelled(classes), NOBODY, 0)
    assert (len(set(seeds)), found) == (images, columns)
    assert conditions["label"].tolist() == [i % min(classes, 64) for i in range(images)]
    captions = [int(text.split()[1]) % classes for text in conditions["caption"]]
    assert captions == conditions["label"].tolist()
    assert "image" not in conditions


def test_unlabelled_data_show_forty_images():
    conditions, seeds, columns = grid_conditions(Labelled(0), NOBODY, 0)
    assert (len(seeds), columns) == (40, 10)
    assert len(set(conditions["caption"])) == 40


def test_a_class_with_one_image_shows_it_again():
    conditions, _, _ = grid_conditions(Labelled(10, length=12), NOBODY, 0)
    assert conditions["label"].tolist() == list(range(10)) * 4


def test_shapes_show_every_class_once():
    conditions, _, columns = grid_conditions(Shapes(image_size=8, val_images=2_000), NOBODY, 0)
    assert columns == 8
    assert conditions["label"].tolist() == list(range(len(CLASS_NAMES)))
