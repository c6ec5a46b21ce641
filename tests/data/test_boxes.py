import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from annotated_files import (
    IMAGE,
    KINDS,
    UNIT,
    batch_of,
    only,
    open_data,
    painted,
    palette,
    scene,
    stored,
    turned_by_exif,
    write,
)
from image_files import picture, png, pngs

from ldmlab.errors import UserError


def boxes_alone(tmp_path, boxes, labels=None, sizes=None, **options):
    """The batch of a data set with these boxes, by row, for images of `sizes`."""
    images = [png(picture(row, size)) for row, size in enumerate(sizes or [(8, 8)] * len(boxes))]
    columns = {"boxes": boxes} | ({} if labels is None else {"box_labels": labels})
    return batch_of(open_data(only(tmp_path, images=images, **columns), **options).split("train"))


def test_boxes_move_with_the_crop_and_are_clipped(tmp_path):
    # 16 x 8: the centre square begins a quarter from the left and is half as wide
    batch = boxes_alone(tmp_path, [[[0.25, 0.0, 0.75, 0.5], [0.125, 0.25, 0.5, 1.0]]], sizes=[(16, 8)])
    assert batch["boxes"].dtype == torch.float32
    assert batch["boxes"].tolist() == [[[0.0, 0.0, 1.0, 0.5], [0.0, 0.25, 0.5, 1.0]]]
    assert batch["box_labels"].tolist() == [[0, 0]]


def test_boxes_enclose_their_objects_after_resizing_and_cropping(tmp_path):
    ids = scene(96, 50)
    ys, xs = np.nonzero(ids == 1)
    box = [xs.min() / 96, ys.min() / 50, (xs.max() + 1) / 96, (ys.max() + 1) / 50]
    folder = only(tmp_path, images=[png(painted(ids))], masks=[png(palette(ids))], boxes=[[box]])
    batch = batch_of(open_data(folder, image_size=25).split("train"))
    ys, xs = np.nonzero(batch["semantic"][0].numpy() == 1)
    found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 25
    assert abs(batch["boxes"][0, 0].numpy() - found).max() <= 0.5 / 25 + 1e-6


def test_boxes_that_lose_more_than_three_quarters_are_no_boxes(tmp_path):
    # the square is x from 0.25 to 0.75: the boxes keep 0, 1/5 and 2/5 of their area
    boxes = [[[0.0, 0.0, 0.25, 1.0], [0.05, 0.0, 0.3, 1.0], [0.1, 0.0, 0.35, 1.0]]]
    batch = boxes_alone(tmp_path, boxes, [[5, 6, 7]], sizes=[(16, 8)])
    torch.testing.assert_close(batch["boxes"], torch.tensor([[[0.0, 0.0, 0.2, 1.0], [0.0] * 4, [0.0] * 4]]))
    assert batch["box_labels"].tolist() == [[2, -1, -1]]


def test_boxes_without_area_are_no_boxes(tmp_path):
    batch = boxes_alone(tmp_path, [[[0.5, 0.2, 0.5, 0.7], [0.0, 0.0, 0.1, 0.1]]])
    assert batch["box_labels"].tolist() == [[0, -1]]


def test_both_splits_have_as_many_places_as_the_fullest_image_of_all(tmp_path):
    box = [0.0, 0.0, 0.5, 0.5]
    write(tmp_path / "d/train.parquet", pngs(2), boxes=[[box], []], box_labels=[["a"], []])
    write(tmp_path / "d/val.parquet", pngs(2), boxes=[[box] * 3, None], box_labels=[["b", "a", "b"], None])
    data = open_data(tmp_path / "d")
    assert data.info.box_classes == ("a", "b")
    train, val = batch_of(data.split("train")), batch_of(data.split("val"))
    assert train["box_labels"].tolist() == [[0, -1, -1], [-1, -1, -1]]
    assert val["box_labels"].tolist() == [[1, 0, 1], [-1, -1, -1]]
    assert train["boxes"].tolist() == [[box, [0] * 4, [0] * 4], [[0] * 4] * 3]


def test_largest_boxes_are_kept_in_their_order_where_there_are_too_many(tmp_path):
    sides = [0.1, 0.4, 0.2, 0.3]
    batch = boxes_alone(tmp_path, [[[0.0, 0.0, side, 1.0] for side in sides]], [[10, 11, 12, 13]], max_boxes=2)
    assert batch["box_labels"].tolist() == [[1, 3]]
    torch.testing.assert_close(batch["boxes"][0, :, 2], torch.tensor([0.4, 0.3]))


def test_data_without_any_box_has_one_empty_place(tmp_path):
    folder = tmp_path / "d"
    kind = datasets.List(datasets.List(datasets.Value("float32")))
    write(folder / "train.parquet", pngs(2), None, {"boxes": kind}, boxes=[[], []])
    write(folder / "val.parquet", pngs(1), None, {"boxes": kind}, boxes=[[]])
    assert batch_of(open_data(folder).split("train"))["box_labels"].tolist() == [[-1], [-1]]


@pytest.mark.parametrize(
    ("box_format", "box"),
    [
        ("xyxy_relative", [0.25, 0.25, 0.5, 1.0]),
        ("xyxy_pixels", [4, 2, 8, 8]),
        ("xywh_pixels", [4, 2, 4, 6]),
        ("xywh_pixels", [4.0, 2.0, 4.0, 6.5]),
    ],
)
def test_all_formats_tell_the_same_box(tmp_path, box_format, box):
    batch = boxes_alone(tmp_path, [[box]], sizes=[(16, 8)], boxes_format=box_format)
    assert batch["boxes"].tolist() == [[[0.0, 0.25, 0.5, 1.0]]]


def test_pixels_of_boxes_are_those_of_the_image_as_shown(tmp_path):
    image, _ = turned_by_exif(picture(0, (16, 8)), 6)
    folder = only(tmp_path, images=[image], boxes=[[[4, 2, 8, 8]]])
    batch = batch_of(open_data(folder, boxes_format="xyxy_pixels").split("train"))
    assert batch["boxes"].tolist() == [[[0.0, 0.25, 0.5, 1.0]]]


def test_declared_labels_name_the_boxes_classes_and_minus_one_is_no_box(tmp_path):
    boxes = [[[0.0, 0.0, 0.5, side] for side in (0.25, 0.5, 0.75)]]
    folder = only(tmp_path, images=pngs(1), features={"box_labels": KINDS}, boxes=boxes, box_labels=[[2, -1, 0]])
    data = open_data(folder)
    assert data.info.box_classes == ("cat", "dog", "fox")
    batch = batch_of(data.split("train"))
    assert batch["box_labels"].tolist() == [[2, 0]]
    assert batch["boxes"].tolist() == [[[0.0, 0.0, 0.5, 0.25], [0.0, 0.0, 0.5, 0.75]]]


def test_splits_that_number_boxes_classes_differently_agree_by_name(tmp_path):
    for split, names in (("train", ["b", "a"]), ("val", ["a", "z"])):
        kind = datasets.List(datasets.ClassLabel(names=names))
        boxes = [[[0.0, 0.0, 1.0, 1.0]] * 2]
        write(tmp_path / f"d/{split}.parquet", pngs(1), None, {"box_labels": kind}, boxes=boxes, box_labels=[[0, 1]])
    data = open_data(tmp_path / "d")
    assert data.info.box_classes == ("a", "b", "z")
    assert batch_of(data.split("train"))["box_labels"].tolist() == [[1, 0]]
    assert batch_of(data.split("val"))["box_labels"].tolist() == [[0, 2]]


def test_boxes_without_labels_are_of_one_class(tmp_path):
    folder = only(tmp_path, images=pngs(1), boxes=[[[0.0, 0.0, 1.0, 1.0]]], box_labels=[["cat"]])
    data = open_data(folder, box_labels_column="none")
    assert data.info.box_classes == ("object",)
    assert batch_of(data.split("train"))["box_labels"].tolist() == [[0]]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_(pa.float32(), 4)),
        pa.large_list(pa.list_(pa.float64())),
        pa.list_(pa.list_(pa.float16())),
        pa.list_(pa.large_list(pa.int32())),
    ],
    ids=str,
)
def test_lists_of_any_kind_hold_boxes(tmp_path, kind):
    content = {
        "image": pa.array(stored(pngs(3))),
        "boxes": pa.array([None, [[0, 0, 1, 1], [0, 0, 1, 1]], []]).cast(kind),
        "box_labels": [None, ["a", "b"], []],
    }
    for split in ("train", "val"):
        (tmp_path / "d").mkdir(exist_ok=True)
        pq.write_table(pa.table(content), tmp_path / f"d/{split}.parquet")
    batch = batch_of(open_data(tmp_path / "d").split("train"))
    assert batch["box_labels"].tolist() == [[-1, -1], [0, 1], [-1, -1]]
    assert batch["boxes"][1].tolist() == [[0, 0, 1, 1]] * 2


def test_box_beside_its_image_is_a_corrupt_image(tmp_path):
    with pytest.raises(UserError, match=r"train\.parquet row 1 \(the box \[20, 0, 30, 4\] lies beside .* 8 x 8 pixels"):
        boxes_alone(tmp_path, [[[0, 0, 4, 4]], [[20, 0, 30, 4]]], boxes_format="xyxy_pixels")


WRONG_BOXES = [
    ([[UNIT, [1, 2, 30, 4]]], None, "xyxy_relative", r"boxes_format=xyxy_relative: the box \[1, 2, 30, 4\] in row 0"),
    ([[[0.5, 0, 0.2, 1]]], None, "xyxy_relative", r"boxes_format=xyxy_relative: .*ends before it begins"),
    ([[[9, 9, 4, 4]]], None, "xyxy_pixels", r"boxes_format=xyxy_pixels: .*ends before .*choose xywh_pixels"),
    ([[[9, 9, -4, 4]]], None, "xywh_pixels", r"boxes_format=xywh_pixels: .*has a negative side; choose xyxy_pixels"),
    ([[UNIT]], None, "xyxy_pixels", r"boxes_format=xyxy_pixels: .*within 0 and 1; choose xyxy_relative"),
    (
        [[[0.0, 0.0, 1.0, float("nan")]]],
        None,
        "xyxy_relative",
        r"boxes_column: row 0 of split 'train' .*not four numbers.*or none",
    ),
    (
        [[[0.0, None, 1.0, 1.0]]],
        None,
        "xyxy_relative",
        r"boxes_column: row 0 of split 'train' .*not four numbers.*or none",
    ),
    ([[], [UNIT, [0.0, 0.1]]], None, "xyxy_relative", r"boxes_column: row 1 of split 'train' .*not four numbers"),
    ([[UNIT, None]], None, "xyxy_relative", r"boxes_column: row 0 of split 'train' .*not four numbers"),
    ([[UNIT]], [["a", "b"]], "xyxy_relative", r"box_labels_column: row 0 .*2 labels for 1 boxes.*none"),
    ([[UNIT]], [None], "xyxy_relative", r"box_labels_column: row 0 .*0 labels for 1 boxes"),
    ([[UNIT, UNIT]], [["a", None]], "xyxy_relative", r"box_labels_column: a box in row 0 .*no label"),
]


@pytest.mark.parametrize(("boxes", "labels", "box_format", "message"), WRONG_BOXES)
def test_wrong_boxes_end_in_one_line_that_names_option_and_row(tmp_path, boxes, labels, box_format, message):
    columns = {"boxes": boxes, **({} if labels is None else {"box_labels": labels})}
    features = {"box_labels": datasets.List(datasets.Value("string"))} if labels else {}
    folder = only(tmp_path, images=pngs(len(boxes)), features=features, **columns)
    with pytest.raises(UserError, match=rf"data\.{message}") as caught:
        _ = open_data(folder, boxes_format=box_format).info
    assert "\n" not in str(caught.value)


def test_label_that_no_name_stands_for_is_an_error(tmp_path):
    kind = datasets.List(datasets.Value("int64"))
    folder = only(tmp_path, images=pngs(1), features={"box_labels": kind}, boxes=[[UNIT]], box_labels=[[3]])
    for path in folder.iterdir():
        table = pq.read_table(path)
        types = {"image": IMAGE, "boxes": datasets.List(datasets.List(datasets.Value("float64"))), "box_labels": KINDS}
        meta = json.dumps({"info": {"features": datasets.Features(types).to_dict()}})
        pq.write_table(table.replace_schema_metadata({"huggingface": meta}), path)
    with pytest.raises(
        UserError, match=r"data\.box_labels_column: a box in row 0 .*label 3, where 3 classes are named"
    ):
        _ = open_data(folder).info
