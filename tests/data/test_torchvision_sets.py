import inspect
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import picture, pixels
from torchvision import datasets

from ldmlab.data.torchvision_sets import CELEBA_ATTRIBUTES, CIFAR10, CIFAR10_CLASSES, CelebA
from ldmlab.errors import UserError

needs_network = pytest.mark.skipif(os.environ.get("LDMLAB_NETWORK") != "1", reason="downloads; set LDMLAB_NETWORK=1")


@pytest.fixture
def options(tmp_path):
    return {"root": str(tmp_path / "root"), "cache_dir": str(tmp_path / "cache"), "image_size": 8}


@pytest.fixture
def tiny_cifar(monkeypatch):
    """torchvision's CIFAR10 with 5 training images and 2 test images; returns what it was asked for."""
    asked = []

    class Tiny:
        def __init__(self, root, train, download):
            asked.append((root, train, download))
            numbers = range(5) if train else range(10, 12)
            self.data = np.stack([np.asarray(picture(number)) for number in numbers])
            self.targets = [9, 0, 3, 3, 1] if train else [4, 5]

    monkeypatch.setattr(datasets, "CIFAR10", Tiny)
    return asked


@pytest.fixture
def tiny_celeba(monkeypatch, options):
    """torchvision's CelebA with 4 training, 3 validation and 2 test images."""
    starts = {"train": (0, 4), "valid": (10, 3), "test": (20, 2)}

    class Tiny:
        base_folder, attr_names = "celeba", [*CELEBA_ATTRIBUTES, ""]

        def __init__(self, root, split, download):
            first, count = starts[split]
            self.root = root
            self.filename = [f"{first + index:06d}.png" for index in range(count)]
            self.attr = torch.zeros(count, 40, dtype=torch.int64)
            self.attr[1, CELEBA_ATTRIBUTES.index("Smiling")] = 1

    folder = Path(options["root"], "celeba/img_align_celeba")
    folder.mkdir(parents=True)
    for first, count in starts.values():
        for number in range(first, first + count):
            picture(number).save(folder / f"{number:06d}.png")
    monkeypatch.setattr(datasets, "CelebA", Tiny)


def test_cifar10_trains_on_train_and_validates_on_test(tiny_cifar, options):
    data = CIFAR10(**options, flip=True)
    train, val = data.split("train"), data.split("val")
    batch = train.__getitems__([0, 4])
    assert (len(train), len(val)) == (5, 2)
    assert np.array_equal(batch["image"], np.stack([pixels(0), pixels(4)]))
    assert batch["label"].tolist() == [9, 1]
    assert val.__getitems__([1])["label"].tolist() == [5]
    assert tiny_cifar == [(options["root"], True, True), (options["root"], False, True)]
    assert data.flip


def test_cifar10_info_needs_no_files(options, monkeypatch):
    monkeypatch.setattr(datasets, "CIFAR10", None)
    info = CIFAR10(**options).info
    assert (info.name, info.num_classes, info.class_names[6]) == ("cifar10", 10, "frog")
    assert info.fingerprint != CIFAR10(**{**options, "image_size": 32}).info.fingerprint


def test_second_use_does_not_ask_torchvision(tiny_cifar, options):
    CIFAR10(**options).split("train")
    CIFAR10(**options).split("train")
    assert len(tiny_cifar) == 1


def test_cifar10_limit(tiny_cifar, options):
    source = CIFAR10(**options, limit=3).split("train")
    assert source.__getitems__(list(range(len(source))))["label"].tolist() == [9, 0, 3]


def test_missing_files_without_download_end_in_one_line(options):
    with pytest.raises(UserError, match=r"data\.root=.*torchvision found no cifar10 .*data\.download=true") as caught:
        CIFAR10(**options, download=False).split("train")
    assert "\n" not in str(caught.value)


def test_celeba_is_unlabelled_unless_an_attribute_is_chosen(tiny_celeba, options):
    data = CelebA(**options)
    source = data.split("train")
    batch = source.__getitems__(list(range(4)))
    assert list(batch) == ["image"]
    assert data.info.class_names == ()
    assert np.array_equal(batch["image"], np.stack([pixels(number) for number in range(4)]))


def test_celeba_attribute_is_the_label(tiny_celeba, options):
    data = CelebA(**options, attribute="Smiling")
    assert data.info.class_names == ("not Smiling", "Smiling")
    assert data.split("train").__getitems__([0, 1, 2, 3])["label"].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(("val_split", "first"), [("valid", 10), ("test", 20)])
def test_celeba_validates_on_either_other_split(tiny_celeba, options, val_split, first):
    source = CelebA(**options, val_split=val_split).split("val")
    assert np.array_equal(source.__getitems__([0])["image"][0], pixels(first))


def test_celeba_limit(tiny_celeba, options):
    assert len(CelebA(**options, limit=2, attribute="Smiling").split("train")) == 2


def test_celeba_corrupt_file_is_named(tiny_celeba, options):
    Path(options["root"], "celeba/img_align_celeba/000002.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"000002\.png \(not an image"):
        CelebA(**options).split("train")
    assert len(CelebA(**options, corrupt="skip").split("train")) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attribute": "Happy"}, r"data\.attribute=Happy: choose null or one of .*Smiling"),
        ({"val_split": "val"}, r"data\.val_split=val: choose valid or test"),
        ({"corrupt": "x"}, r"data\.corrupt=x"),
    ],
)
def test_wrong_option_of_celeba_is_named(options, wrong, message):
    with pytest.raises(UserError, match=message):
        CelebA(**options, **wrong)


def test_fingerprint_of_celeba_follows_its_options(options):
    chosen = [{}, {"attribute": "Male"}, {"attribute": "Young"}, {"val_split": "test"}, {"limit": 5}]
    assert len({CelebA(**options, **choice).info.fingerprint for choice in chosen}) == 5


def test_stand_ins_take_the_arguments_of_the_real_classes():
    assert {"root", "train", "download"} <= set(inspect.signature(datasets.CIFAR10).parameters)
    assert {"root", "split", "download"} <= set(inspect.signature(datasets.CelebA).parameters)
    assert len(CELEBA_ATTRIBUTES) == 40


@pytest.mark.network
@needs_network
def test_real_cifar10(tmp_path):
    data = CIFAR10(root=str(tmp_path), cache_dir=str(tmp_path), image_size=32)
    train = data.split("train")
    assert len(train) == 50_000
    assert train.__getitems__(list(range(10)))["label"].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert tuple(datasets.CIFAR10(tmp_path).classes) == CIFAR10_CLASSES
