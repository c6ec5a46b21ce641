import io
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from annotated_files import (
    COLOURS,
    IMAGE,
    assert_aligned,
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
from image_files import CORRUPT, picture, png, pngs
from PIL import Image

from ldmlab.data.parquet import ParquetImages
from ldmlab.data.semantic import SemanticMaps
from ldmlab.data.transforms import Frame, square_map
from ldmlab.errors import UserError


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (40, 40), (16, 16), (100, 37), (10, 12)])
@pytest.mark.parametrize("image_size", [16, 24])
def test_map_shows_what_the_image_shows_after_resizing_and_cropping(tmp_path, size, image_size):
    ids = scene(*size)
    folder = only(tmp_path, images=[png(painted(ids))], masks=[png(palette(ids))])
    batch = batch_of(open_data(folder, image_size=image_size).split("train"))
    assert batch["semantic"].dtype == torch.int64
    assert batch["semantic"].shape == (1, image_size, image_size)
    assert_aligned(batch["image"][0], batch["semantic"][0])


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("size", [(48, 32), (32, 48), (40, 40)])
def test_map_drawn_over_the_image_as_shown_fits_the_image_that_exif_turns(tmp_path, orientation, size):
    ids = scene(*size)
    image, _ = turned_by_exif(painted(ids), orientation)
    batch = batch_of(open_data(only(tmp_path, images=[image], masks=[png(palette(ids))]), image_size=16).split("train"))
    assert_aligned(batch["image"][0], batch["semantic"][0])


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("size", [(48, 32), (32, 48)])
def test_map_of_the_stored_pixels_is_turned_with_the_image(tmp_path, orientation, size):
    ids = scene(*size)
    image, pixels = turned_by_exif(painted(ids), orientation)
    on_the_side = np.array([[(pixel == COLOURS).all(1).argmax() for pixel in row] for row in np.array(pixels)])
    mask = png(palette(on_the_side.astype(np.uint8)))
    batch = batch_of(open_data(only(tmp_path, images=[image], masks=[mask]), image_size=16).split("train"))
    assert_aligned(batch["image"][0], batch["semantic"][0])


@pytest.mark.parametrize("size", [(50, 30), (30, 50), (31, 64), (16, 37), (33, 33), (200, 77)])
def test_shrunk_map_has_the_class_of_most_pixels_under_each_pixel(size):
    ids = np.random.default_rng(1).integers(0, 3, (size[1], size[0])).astype(np.uint8)
    frame = Frame(*size, 16)
    square = square_map(ids, frame)
    (width, height), (left, top) = frame.resized, frame.left_top
    row = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(int) - top
    column = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(int) - left
    for y in range(16):
        for x in range(16):
            votes = np.bincount(ids[np.ix_(row == y, column == x)].ravel(), minlength=3)
            assert votes[square[y, x]] == votes.max() > 0


def test_grown_map_has_the_class_of_the_nearest_pixel():
    ids = np.array([[0, 7], [300, 2]], dtype=np.int16)
    assert np.array_equal(square_map(ids, Frame(2, 2, 6)), np.kron(ids, np.ones((3, 3), dtype=np.int16)))


def test_thin_line_survives_halving_where_it_meets_the_pixels_centres():
    ids = np.zeros((8, 8), dtype=np.uint8)
    ids[:, 3] = 5
    assert square_map(ids, Frame(8, 8, 4))[:, 1].tolist() == [5] * 4


@pytest.mark.parametrize("kind", ["L", "P", "1", "I;16"])
def test_pixel_values_of_any_map_of_one_channel_are_the_ids(tmp_path, kind):
    ids = np.random.default_rng(2).integers(0, 2, (8, 8)).astype(np.uint8)
    images = {
        "L": Image.fromarray(ids),
        "P": palette(ids),
        "1": Image.fromarray(ids.astype(bool)),
        "I;16": Image.fromarray(ids.astype(np.uint16)),
    }
    folder = only(tmp_path, images=pngs(1), masks=[png(images[kind])])
    assert np.array_equal(batch_of(open_data(folder).split("train"))["semantic"][0], ids)


def test_ids_beyond_255_are_kept(tmp_path):
    ids = np.random.default_rng(2).integers(0, 1000, (8, 8)).astype(np.uint16)
    data = open_data(only(tmp_path, images=pngs(1), masks=[png(Image.fromarray(ids))]))
    assert np.array_equal(batch_of(data.split("train"))["semantic"][0], ids)
    assert len(data.info.semantic_classes) == ids.max() + 1


def test_table_whose_map_comes_first_still_has_its_image(tmp_path):
    path = write(tmp_path / "d/train.parquet", pngs(4), [png(Image.fromarray(scene(8, 8)))] * 4)
    table = pq.read_table(path)
    pq.write_table(table.select(["mask", "image"]), path)
    batch = batch_of(open_data(path, image_size=8).split("train"))
    assert batch["semantic"].max() == 3
    assert batch["image"].unique().numel() > 4


def test_columns_of_maps_and_boxes_may_be_named_or_left_out(tmp_path):
    other = [png(Image.fromarray(np.full((8, 8), 2, dtype=np.uint8)))]
    folder = only(
        tmp_path,
        images=pngs(1),
        masks=[png(Image.fromarray(scene(8, 8)))],
        features={"parts": IMAGE},
        parts=stored(other),
        boxes=[[[0.0, 0.0, 1.0, 1.0]]],
        box_labels=[[4]],
        places=[[[0.0, 0.0, 0.5, 1.0]]],
        names=[["cup"]],
    )
    named = open_data(folder, semantic_column="parts", boxes_column="places", box_labels_column="names")
    assert named.info.box_classes == ("cup",)
    assert len(named.info.semantic_classes) == 3
    batch = batch_of(named.split("train"))
    assert batch["semantic"].unique().tolist() == [2]
    assert batch["boxes"].tolist() == [[[0.0, 0.0, 0.5, 1.0]]]
    none = open_data(folder, semantic_column="none", boxes_column="none")
    assert (none.info.semantic_classes, none.info.box_classes) == ((), ())
    assert list(batch_of(none.split("train"))) == ["image"]


def test_maps_have_as_many_classes_as_the_largest_id_of_both_splits_asks_for(tmp_path):
    for split, largest in (("train", 3), ("val", 6)):
        mask = np.zeros((8, 8), dtype=np.uint8)
        mask[5, 5] = largest
        write(tmp_path / f"d/{split}.parquet", pngs(2), [png(Image.fromarray(mask))] * 2)
    assert open_data(tmp_path / "d").info.semantic_classes == ("0", "1", "2", "3", "4", "5", "6")
    # counted before resizing, so that models of different sizes agree
    assert len(open_data(tmp_path / "d", image_size=2).info.semantic_classes) == 7


@pytest.mark.parametrize(("classes", "names"), [(["sky", "road", "car", "tree"], None), (5, ("0", "1", "2", "3", "4"))])
def test_classes_of_maps_may_be_named_or_counted_and_then_nothing_is_decoded(tmp_path, monkeypatch, classes, names):
    folder = only(tmp_path, images=pngs(1), masks=[png(Image.fromarray(scene(8, 8)))])
    monkeypatch.setattr("ldmlab.data.semantic.open_image", None)
    assert open_data(folder, semantic_classes=classes).info.semantic_classes == (names or tuple(classes))
    assert not (tmp_path / "cache").exists()


def test_number_of_classes_is_looked_for_once(tmp_path, monkeypatch):
    folder = only(tmp_path, images=pngs(1), masks=[png(Image.fromarray(scene(8, 8)))])
    before = open_data(folder).info
    monkeypatch.setattr("ldmlab.data.semantic.open_image", None)
    monkeypatch.setattr(ParquetImages, "load_table", None)
    assert open_data(folder).info == before
    assert len(open_data(folder, image_size=4).info.semantic_classes) == 4


def test_named_classes_and_found_ones_share_a_cache(tmp_path):
    folder = only(tmp_path, images=pngs(1), masks=[png(Image.fromarray(scene(8, 8)))])
    prints = {open_data(folder, semantic_classes=classes).info.fingerprint for classes in (None, 4, list("abcd"))}
    assert len(prints) == 1


def test_maps_are_kept_in_one_byte_where_they_fit():
    assert SemanticMaps([], 256).dtype is np.uint8
    assert SemanticMaps([], 257).dtype is np.int16


def as_jpeg(ids):
    stream = io.BytesIO()
    Image.fromarray(ids).save(stream, "JPEG")
    return stream.getvalue()


BAD_MAPS = {
    "undecodable": (lambda ids: CORRUPT, "semantic map: not an image that Pillow can open"),
    "missing": (lambda ids: None, "semantic map: the row holds no image"),
    "of another size": (
        lambda ids: png(Image.fromarray(scene(16, 15))),
        "semantic map: 16 x 15 pixels, but its image has 16 x 16",
    ),
    "with an id too large": (
        lambda ids: png(Image.fromarray(ids + 1)),
        "semantic map: class id 4, but data.semantic_classes has 4 classes",
    ),
    "in colour": (
        lambda ids: png(picture(1, (16, 16))),
        "semantic map: mode RGB, not one channel of class ids.*data.semantic_column=none",
    ),
    "JPEG": (as_jpeg, "semantic map: a JPEG, whose compression mixes class ids"),
    "negative": (
        lambda ids: tiff(ids.astype(np.int32) - 1),
        "semantic map: pixels from -1 to 2; class ids are 0 to 32767",
    ),
}


def tiff(values):
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF")
    return stream.getvalue()


@pytest.mark.parametrize("kind", BAD_MAPS)
@pytest.mark.parametrize("max_cache_gb", [8, 0])
def test_map_that_cannot_be_used_is_a_corrupt_image(tmp_path, caplog, kind, max_cache_gb):
    make, message = BAD_MAPS[kind]
    ids = scene(16, 16)
    good = png(palette(ids))
    folder = only(
        tmp_path,
        images=[png(painted(ids))] * 4,
        masks=[good, good, make(ids), good],
        caption=list("abcd"),
        label=[3, 4, 5, 6],
        boxes=[[[0.0, 0.0, 0.1 + 0.1 * row, 1.0]] for row in range(4)],
    )
    options = {"max_cache_gb": max_cache_gb, "semantic_classes": ["a", "b", "c", "d"]}
    with pytest.raises(UserError, match=rf"train\.parquet row 2 \({message}.*data\.corrupt=skip") as caught:
        batch_of(open_data(folder, **options).split("train"))
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        batch = batch_of(open_data(folder, corrupt="skip", **options).split("train"))
    assert "train.parquet row 2 (semantic map" in caplog.text
    assert batch["caption"] == list("abd")
    assert batch["label"].tolist() == [0, 1, 3]
    assert batch["boxes"][:, 0, 2].tolist() == pytest.approx([0.1, 0.2, 0.4])
    assert batch["semantic"].shape == (3, 8, 8)


def test_broken_maps_do_not_hide_the_number_of_classes(tmp_path):
    folder = only(tmp_path, images=pngs(2, 0), masks=[CORRUPT, png(Image.fromarray(scene(8, 8)))])
    data = open_data(folder, corrupt="skip")
    assert len(data.info.semantic_classes) == 4
    assert len(data.split("train")) == 1


def test_column_without_a_single_map_is_an_error_of_one_line(tmp_path):
    folder = only(tmp_path, images=pngs(2), masks=[png(picture(1)), png(picture(2))])
    with pytest.raises(UserError, match=r"data\.semantic_column: column 'mask' .*no map.*mode RGB.*none") as caught:
        _ = open_data(folder).info
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache/semantic").glob("*"))


def test_names_of_classes_without_any_map_are_an_error(tmp_path):
    folder = only(tmp_path, images=pngs(1))
    with pytest.raises(UserError, match=r"data\.semantic_classes: .*no column of maps; name it: data\.semantic_column"):
        _ = open_data(folder, semantic_classes=["a"]).info
    assert open_data(folder, semantic_classes=["a"], semantic_column="none").info.semantic_classes == ()


def test_map_that_only_train_has_is_an_error(tmp_path):
    write(tmp_path / "d/train.parquet", pngs(1), [png(Image.fromarray(scene(8, 8)))])
    write(tmp_path / "d/val.parquet", pngs(1))
    with pytest.raises(UserError, match=r"data\.semantic_column: column 'mask' .*missing in split 'val'.*none"):
        _ = open_data(tmp_path / "d").info
