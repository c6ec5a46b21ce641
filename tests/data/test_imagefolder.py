import csv
import json

import numpy as np
import pytest
from image_files import CORRUPT, picture, pixels

from ldmlab.data.imagefolder import ImageFolder
from ldmlab.errors import UserError


def save(folder, *numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        picture(number).save(folder / f"{number:03d}.png")


def open_data(root, **options):
    options = {"image_size": 8, "cache_dir": str(root.parent / "cache"), **options}
    return ImageFolder(path=str(root), **options)


def content(source):
    """Number of each picture with its label and caption, whichever there are."""
    batch = source.__getitems__(list(range(len(source))))
    table = {pixels(number).tobytes(): number for number in range(60)}
    numbers = [table[image.numpy().tobytes()] for image in batch["image"]]
    rest = [batch[key].tolist() if key == "label" else batch[key] for key in ("label", "caption") if key in batch]
    return list(zip(numbers, *rest, strict=True))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "set"


def test_class_folders_give_labels_and_a_held_out_part(root):
    save(root / "dog", *range(5))
    save(root / "cat", *range(5, 10))
    data = open_data(root, val_fraction=0.2)
    assert data.info.name == "set"
    assert data.info.class_names == ("cat", "dog")
    train, val = content(data.split("train")), content(data.split("val"))
    assert (len(train), len(val)) == (8, 2)
    assert sorted(train + val) == [(number, int(number < 5)) for number in range(10)]


@pytest.mark.parametrize("val", ["val", "validation", "test"])
def test_split_folders_with_class_folders_give_both_splits(root, val):
    save(root / "train/b", 0, 1)
    save(root / "train/a", 2)
    save(root / val / "a", 10)
    save(root / val / "c", 11)
    data = open_data(root)
    assert data.info.class_names == ("a", "b", "c")
    assert content(data.split("train")) == [(2, 0), (0, 1), (1, 1)]
    assert content(data.split("val")) == [(10, 0), (11, 2)]


def test_split_folders_of_bare_images_have_no_labels(root):
    save(root / "train", 0, 1)
    save(root / "val", 2)
    data = open_data(root)
    assert data.info.class_names == ()
    assert content(data.split("train")) == [(0,), (1,)]
    assert content(data.split("val")) == [(2,)]


def test_class_named_train_is_a_class(root):
    for number, name in enumerate(("car", "plane", "train")):
        save(root / name, 2 * number, 2 * number + 1)
    assert open_data(root).info.class_names == ("car", "plane", "train")


def test_files_named_test_stay_in_the_training_split(root):
    save(root, 0, 1, 2)
    (root / "002.png").rename(root / "test_002.png")
    data = open_data(root, val_fraction=0.34)
    assert len(content(data.split("train"))) + len(content(data.split("val"))) == 3


def test_metadata_csv_gives_captions_and_labels(root):
    save(root, 0, 1, 2, 3)
    rows = [
        ("file_name", "text", "label"),
        ("002.png", "two", "x"),
        ("000.png", "zero", "y"),
        ("003.png", "three", "x"),
    ]
    with open(root / "metadata.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    data = open_data(root, val_split="train")
    assert data.info.class_names == ("x", "y")
    assert data.info.has_captions
    assert content(data.split("train")) == [(2, 0, "two"), (0, 1, "zero"), (3, 0, "three")]


def test_metadata_jsonl_gives_captions_in_each_split(root):
    for split, number in (("train", 0), ("test", 1)):
        save(root / split, number)
        line = {"file_name": f"{number:03d}.png", "caption": f"caption {number}"}
        (root / split / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    data = open_data(root)
    assert content(data.split("train")) == [(0, "caption 0")]
    assert content(data.split("val")) == [(1, "caption 1")]


def test_metadata_may_name_files_in_subfolders(root):
    save(root / "train", 0)
    save(root / "test", 1)
    (root / "metadata.csv").write_text("file_name,caption\ntrain/000.png,a\ntest/001.png,b\n")
    assert content(open_data(root, val_split="train").split("train")) == [(0, "a"), (1, "b")]


def test_flat_folder_gives_images_alone(root):
    save(root, 3, 1, 2)
    data = open_data(root, val_split="train")
    assert (data.info.class_names, data.info.has_captions) == ((), False)
    assert content(data.split("train")) == [(1,), (2,), (3,)]


def test_brackets_in_a_path_are_no_pattern(tmp_path):
    save(tmp_path / "set [64]", 1, 2)
    assert content(open_data(tmp_path / "set [64]", val_split="train").split("train")) == [(1,), (2,)]


def test_other_and_hidden_files_are_left_alone(root):
    save(root, 1, 2)
    before = open_data(root).info.fingerprint
    (root / "notes.txt").write_text("hello")
    (root / ".hidden.png").write_bytes(CORRUPT)
    assert len(open_data(root, val_split="train").split("train")) == 2
    assert open_data(root).info.fingerprint == before


def test_corrupt_file_is_named(root):
    save(root / "a", 1, 2)
    save(root / "b", 3)
    (root / "b/009.png").write_bytes(CORRUPT)
    with pytest.raises(UserError, match=r"corrupt image: b/009\.png \(not an image"):
        open_data(root, val_split="train").split("train")
    assert len(open_data(root, val_split="train", corrupt="skip").split("train")) == 3


def test_file_that_metadata_promises_is_missed_by_name(root):
    save(root, 0)
    (root / "metadata.csv").write_text("file_name\n000.png\n777.png\n")
    with pytest.raises(UserError, match=r"777\.png"):
        open_data(root, val_split="train").split("train")


def test_second_use_reads_the_cache(root, monkeypatch):
    save(root, 0, 1)
    open_data(root, val_split="train").split("train")
    monkeypatch.setattr("ldmlab.data.opened.open_image", None)
    assert content(open_data(root, val_split="train").split("train")) == [(0,), (1,)]


@pytest.mark.parametrize("limit", [None, 1])
def test_images_on_demand_are_the_same(root, limit):
    save(root, 4, 5)
    source = open_data(root, val_split="train", max_cache_gb=0, limit=limit).split("train")
    assert np.array_equal(source.__getitems__([0])["image"][0], pixels(4))
    assert len(source) == (limit or 2)


def test_fingerprint_changes_with_a_file_its_name_and_its_folder(root):
    save(root / "a", 0, 1)
    save(root / "b", 2)
    prints = [open_data(root).info.fingerprint]
    (root / "a/000.png").rename(root / "b/000.png")
    prints.append(open_data(root).info.fingerprint)
    picture(50).save(root / "b/000.png")
    prints.append(open_data(root).info.fingerprint)
    save(root / "b", 7)
    prints.append(open_data(root).info.fingerprint)
    assert len(set(prints)) == 4


def test_missing_folder_is_named(root):
    with pytest.raises(UserError, match=r"data\.path: no such folder: .*/set \("):
        _ = open_data(root).info


@pytest.mark.parametrize("file", [None, "readme.txt"])
def test_folder_without_images_is_named(root, file):
    root.mkdir()
    if file:
        (root / file).touch()
    with pytest.raises(UserError, match=r"data\.path: no images in .*/set"):
        _ = open_data(root).info


def test_split_folder_that_does_not_exist_is_named(root):
    save(root / "train", 0)
    save(root / "test", 1)
    with pytest.raises(UserError, match=r"data\.val_split: no split 'eval' .*found: test, train"):
        _ = open_data(root, val_split="eval").info


def test_metadata_without_file_names_ends_in_one_line(root):
    save(root, 0)
    (root / "metadata.csv").write_text("name,caption\n000.png,a\n")
    with pytest.raises(UserError, match=r"cannot read .*/set: .*file_name") as caught:
        _ = open_data(root).info
    assert "\n" not in str(caught.value)


def test_wrong_column_is_named(root):
    save(root, 0)
    with pytest.raises(UserError, match=r"data\.label_column: no column 'kind' .*columns: image\)"):
        _ = open_data(root, label_column="kind").info
