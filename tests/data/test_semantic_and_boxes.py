"""Semantic maps and boxes together, from the options to the batch."""

import csv
import json
import pickle

import datasets
import numpy as np
import pytest
import torch
from annotated_files import (
    KINDS,
    UNIT,
    assert_aligned,
    batch_of,
    only,
    open_data,
    painted,
    palette,
    scene,
    write,
)
from image_files import picture, png, pngs
from PIL import Image

from ldmlab.data.decoded import CACHE_VERSION, DecodedImages, ImagesOnDemand
from ldmlab.data.fingerprint import digest
from ldmlab.data.hub import HubImages
from ldmlab.data.imagefolder import ImageFolder
from ldmlab.data.loader import Flipped
from ldmlab.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """8 images in two files to train on, 3 to validate on, with maps, boxes, labels and captions, of several sizes."""
    sizes = [(48, 32), (32, 48), (40, 40), (16, 16)]

    def write_rows(name, rows):
        ids = [scene(*sizes[row % 4]) for row in rows]
        write(
            tmp_path / "set" / name,
            [png(painted(one)) for one in ids],
            [png(palette(one)) for one in ids],
            {"box_labels": KINDS},
            boxes=[[[0.1, 0.1, 0.6, 0.9], [0.3, 0.2, 0.4 + row / 20, 0.8]][: row % 3] for row in rows],
            box_labels=[[row % 3, 1][: row % 3] for row in rows],
            label=[f"class {row % 2}" for row in rows],
            caption=[f"number {row}" for row in rows],
        )

    write_rows("train-0.parquet", range(4))
    write_rows("train-1.parquet", range(4, 8))
    write_rows("val.parquet", range(8, 11))
    return tmp_path / "set"


def same(one, other):
    assert list(one) == list(other)
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key
        assert getattr(value, "dtype", None) == getattr(other[key], "dtype", None)


@pytest.mark.parametrize("split", ["train", "val"])
def test_cache_and_decoding_on_demand_give_the_same_batches(folder, split):
    cached = open_data(folder, image_size=16).split(split)
    again = open_data(folder, image_size=16).split(split)
    assert isinstance(cached, DecodedImages)
    # elsewhere, because a cache that there is already would be used
    on_demand = open_data(folder, image_size=16, max_cache_gb=0, cache_dir=str(folder.parent / "other")).split(split)
    assert isinstance(on_demand, ImagesOnDemand)
    for source in (again, on_demand):
        same(batch_of(cached), batch_of(source))
        same(cached.__getitems__([2, 0, 2]), source.__getitems__([2, 0, 2]))


def test_boxes_maps_labels_and_captions_of_a_row_stay_together(folder):
    batch = batch_of(open_data(folder, image_size=16).split("train"))
    assert batch["caption"] == [f"number {row}" for row in range(8)]
    assert (batch["box_labels"] >= 0).sum(1).tolist() == [row % 3 for row in range(8)]
    for image, semantic in zip(batch["image"], batch["semantic"], strict=True):
        assert_aligned(image, semantic)


def test_maps_and_boxes_of_a_held_out_part_belong_to_its_images(tmp_path):
    sides = [0.1 + 0.1 * row for row in range(8)]
    masks = [png(Image.fromarray(np.full((8, 8), row, dtype=np.uint8))) for row in range(8)]
    images = [png(Image.fromarray(np.full((8, 8, 3), row, dtype=np.uint8))) for row in range(8)]
    path = write(tmp_path / "d/all.parquet", images, masks, boxes=[[[0.0, 0.0, side, 1.0]] for side in sides])
    data = open_data(path, val_fraction=0.5)
    for split in ("train", "val"):
        batch = batch_of(data.split(split))
        rows = ((batch["image"][:, 0, 0, 0] + 1) * 127.5).round().long()
        assert torch.equal(batch["semantic"][:, 0, 0], rows)
        torch.testing.assert_close(batch["boxes"][:, 0, 2], torch.tensor(sides)[rows])


def test_limit_holds_for_maps_and_boxes(folder):
    batch = batch_of(open_data(folder, image_size=16, limit=3).split("train"))
    assert (batch["box_labels"] >= 0).sum(1).tolist() == [0, 1, 2]
    assert batch["semantic"].shape == (3, 16, 16)


def test_mirrored_batch_has_mirrored_maps_and_boxes_and_leaves_no_box_alone(folder):
    source = open_data(folder, image_size=16).split("train")
    batch = Flipped(source).__getitems__([1, 9])
    assert_aligned(batch["image"][1], batch["semantic"][1])
    assert torch.equal(batch["semantic"][1], batch["semantic"][0].flip(-1))
    (x0, y0, x1, y1), nothing = batch["boxes"][0].tolist()
    assert batch["boxes"][1, 0].tolist() == pytest.approx([1 - x1, y0, 1 - x0, y1])
    assert batch["boxes"][1, 1].tolist() == nothing == [0.0] * 4


def test_worker_processes_open_the_arrays_themselves(folder):
    source = open_data(folder, image_size=32).split("train")
    content = pickle.dumps(source)
    assert len(content) < 3000
    same(batch_of(pickle.loads(content)), batch_of(source))


def test_size_of_the_cache_counts_maps_and_boxes(folder):
    places = 2
    nbytes = 8 * (3 * 16 * 16 + 16 * 16 + places * (4 * 4 + 8))
    cache = {"image_size": 16, "cache_dir": str(folder.parent / "a")}
    assert isinstance(open_data(folder, max_cache_gb=(nbytes - 1) / 1e9, **cache).split("train"), ImagesOnDemand)
    assert isinstance(open_data(folder, max_cache_gb=nbytes / 1e9, **cache).split("train"), DecodedImages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"semantic_column": "maks"}, r"semantic_column: no column 'maks' .*columns: image, boxes"),
        ({"boxes_column": "box"}, r"boxes_column: no column 'box'"),
        ({"box_labels_column": "kind"}, r"box_labels_column: no column 'kind'"),
        ({"semantic_column": "caption"}, r"semantic_column: column 'caption' .*no images; images are: image, mask"),
        ({"semantic_column": "image", "image_column": "image"}, r"semantic_column: column 'image' .*is the image"),
        ({"boxes_column": "caption"}, r"boxes_column: column 'caption' .*no boxes.*or none"),
        ({"boxes_column": "box_labels"}, r"boxes_column: column 'box_labels' .*no boxes"),
        ({"box_labels_column": "boxes"}, r"box_labels_column: column 'boxes' .*no labels of boxes.*or none"),
        ({"boxes_column": "none", "box_labels_column": "box_labels"}, r"box_labels_column=box_labels: .*no boxes"),
        ({"image_column": "none"}, r"image_column: no column 'none'"),
        ({"boxes_format": "xywh"}, r"boxes_format=xywh: choose xyxy_relative, xyxy_pixels, xywh_pixels"),
        ({"max_boxes": 0}, r"max_boxes=0: .*boxes_column=none"),
        ({"semantic_classes": 0}, r"semantic_classes=0: give a list"),
        ({"semantic_classes": "sky"}, r"semantic_classes=sky: give a list"),
        ({"semantic_classes": True}, r"semantic_classes=True: give a list"),
        ({"semantic_classes": []}, r"semantic_classes=\[\]: give a list"),
        ({"semantic_classes": ["sky", "sky"]}, r"semantic_classes=\['sky', 'sky'\]: give a list of different names"),
    ],
)
def test_wrong_option_is_named_in_one_line(tmp_path, options, message):
    folder = only(
        tmp_path,
        images=pngs(1),
        boxes=[[UNIT]],
        box_labels=[["a"]],
        caption=["x"],
        masks=[png(Image.fromarray(scene(8, 8)))],
    )
    with pytest.raises(UserError, match=rf"data\.{message}") as caught:
        _ = open_data(folder, **options).info
    assert "\n" not in str(caught.value)


def test_fingerprint_of_data_without_maps_and_boxes_is_what_it_was_before_there_were_any(tmp_path):
    path = write(tmp_path / "d/train.parquet", pngs(4), caption=list("abcd"), label=[0, 1, 0, 1])
    data = open_data(path, limit=2, val_fraction=0.25)
    columns = {"image": "image", "label": "label", "caption": "caption"}
    recipe = [CACHE_VERSION, 8, 2, data.content_digest(), columns, "train", None, [0.25, 0]]
    assert data.info.fingerprint == digest(recipe)


def test_fingerprint_of_maps_and_boxes_left_out_is_that_of_images_alone(folder):
    data = open_data(folder, semantic_column="none", boxes_column="none", semantic_classes=None, max_boxes=1)
    columns = {"image": "image", "label": "label", "caption": "caption"}
    assert data.info.fingerprint == digest(
        [CACHE_VERSION, 8, None, data.content_digest(), columns, "train", "val", None]
    )


def test_fingerprint_changes_with_every_option_that_changes_maps_or_boxes(folder):
    options = [
        {},
        {"semantic_column": "none"},
        {"boxes_column": "none"},
        {"box_labels_column": "none"},
        {"max_boxes": 1},
        {"semantic_classes": 7},
    ]
    assert len({open_data(folder, **chosen).info.fingerprint for chosen in options}) == len(options)
    assert open_data(folder, max_boxes=2).info.fingerprint == open_data(folder, max_boxes=9).info.fingerprint


def test_fingerprint_changes_with_the_format_of_boxes(tmp_path):
    folder = only(tmp_path, images=pngs(1), boxes=[[[1, 2, 3, 4]]])
    prints = {open_data(folder, boxes_format=kind).info.fingerprint for kind in ("xyxy_pixels", "xywh_pixels")}
    assert len(prints) == 2


def test_hub_repository_gives_maps_and_boxes(tmp_path):
    ids = scene(16, 16)
    content = {"images": [png(painted(ids))], "masks": [png(palette(ids))], "boxes": [[UNIT]], "box_labels": [["cat"]]}
    for split in ("train", "test"):
        write(tmp_path / f"toy/data/{split}-00000-of-00001.parquet", **content)
    data = HubImages(name=str(tmp_path / "toy"), image_size=16, cache_dir=str(tmp_path / "cache"))
    assert len(data.info.semantic_classes) == 4
    assert data.info.box_classes == ("cat",)
    batch = batch_of(data.split("val"))
    assert np.array_equal(batch["semantic"][0], ids)
    assert batch["boxes"].tolist() == [[UNIT]]


@pytest.mark.parametrize("splits", [("",), ("train", "val")])
def test_folder_names_its_maps_in_the_metadata(tmp_path, splits):
    for split in splits:
        root = tmp_path / "set" / split
        (root / "maps").mkdir(parents=True)
        for number in range(3):
            ids = np.roll(scene(16, 16), number, axis=1)
            painted(ids).save(root / f"{number}.png")
            palette(ids).save(root / "maps" / f"{2 - number}.png")
        with open(root / "metadata.csv", "w", newline="") as stream:
            rows = [("file_name", "mask_file_name"), *((f"{n}.png", f"maps/{2 - n}.png") for n in range(3))]
            csv.writer(stream).writerows(rows)
    data = ImageFolder(path=str(tmp_path / "set"), image_size=16, cache_dir=str(tmp_path / "cache"), val_fraction=0.34)
    assert len(data.info.semantic_classes) == 4
    for split in ("train", "val"):
        batch = batch_of(data.split(split))
        for image, semantic in zip(batch["image"], batch["semantic"], strict=True):
            assert_aligned(image, semantic)


def test_metadata_lines_of_a_folder_hold_boxes(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    lines = []
    for number in range(4):
        picture(number).save(root / f"{number}.png")
        boxes = [[0, 0, 8, 2 * number]] * number
        lines.append(
            {"file_name": f"{number}.png", "bboxes": boxes, "box_labels": ["ab"[n % 2] for n in range(number)]}
        )
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = {"image_size": 8, "cache_dir": str(tmp_path / "cache"), "boxes_format": "xywh_pixels"}
    data = ImageFolder(path=str(root), val_fraction=0.25, **options)
    assert data.info.box_classes == ("a", "b")
    heights = {n: n / 4 for n in range(1, 4)}
    for split in ("train", "val"):
        batch = batch_of(data.split(split))
        for boxes, labels in zip(batch["boxes"], batch["box_labels"], strict=True):
            count = int((labels >= 0).sum())
            assert labels.tolist() == [0, 1, 0][:count] + [-1] * (3 - count)
            assert boxes[:count].tolist() == [[0.0, 0.0, 1.0, heights[count]]] * count if count else True


def test_map_that_a_folder_promises_is_missed_by_the_name_of_its_image(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    for number in range(2):
        picture(number).save(root / f"{number}.png")
    Image.fromarray(scene(8, 8)).save(root / "map.png")
    (root / "metadata.csv").write_text("file_name,mask_file_name\n0.png,map.png\n1.png,gone.png\n")
    data = ImageFolder(path=str(root), image_size=8, cache_dir=str(tmp_path / "cache"), val_split="train")
    with pytest.raises(UserError, match=r"gone\.png"):
        data.split("train")


NUMBERS = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
NAMED = datasets.ClassLabel(names=["cat", "dog", "fox"])


@pytest.mark.parametrize("several", [False, True])
def test_boxes_are_found_in_records_as_detection_sets_have_them(tmp_path, several):
    boxes = [[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]], [], [[0.25, 0.25, 0.75, 1.0]], UNIT and [UNIT]]
    kinds = [[2, 0], [], [1], [0]]
    if several:  # a list of records
        objects = [
            [{"bbox": box, "category": kind} for box, kind in zip(*row, strict=True)]
            for row in zip(boxes, kinds, strict=True)
        ]
        features = [{"bbox": datasets.Sequence(datasets.Value("float64")), "category": NAMED}]
    else:  # a record of lists
        objects = [{"bbox": box, "category": kind} for box, kind in zip(boxes, kinds, strict=True)]
        features = {"bbox": NUMBERS, "category": datasets.Sequence(NAMED)}
    place = only(tmp_path, images=pngs(4), features={"objects": features}, objects=objects)
    plain = only(
        tmp_path,
        "plain",
        images=pngs(4),
        features={"boxes": NUMBERS, "box_labels": KINDS},
        boxes=boxes,
        box_labels=kinds,
    )
    for options in ({}, {"boxes_column": "objects.bbox", "box_labels_column": "objects.category"}):
        data = open_data(place, **options)
        assert data.info.box_classes == ("cat", "dog", "fox")
        same(batch_of(data.split("train")), batch_of(open_data(plain).split("train")))
    with pytest.raises(UserError, match=r"no column 'objects.box' in .*objects.bbox"):
        open_data(place, boxes_column="objects.box").info  # noqa: B018
