import logging

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import CORRUPT, picture, pixels, png, pngs, write_parquet

from ldmlab.data.parquet import ParquetImages
from ldmlab.errors import UserError

ABC = datasets.ClassLabel(names=["a", "b", "c"])


@pytest.fixture
def folder(tmp_path):
    """10 images to train on in two files, 3 to test on; labels and captions."""
    for part in range(2):
        rows = range(5 * part, 5 * part + 5)
        write_parquet(
            tmp_path / f"data/train-{part:05d}-of-00002.parquet",
            pngs(5, 5 * part),
            {"label": ABC},
            label=[row % 3 for row in rows],
            caption=[f"number {row}" for row in rows],
        )
    write_parquet(
        tmp_path / "data/test.parquet", pngs(3, 100), {"label": ABC}, label=[0, 1, 2], caption=["x", "y", None]
    )
    return tmp_path / "data"


def open_data(path, **options):
    folder = path if path.is_dir() else path.parent
    return ParquetImages(path=str(path), **{"image_size": 8, "cache_dir": str(folder.parent / "cache"), **options})


def everything(source):
    return source.__getitems__(list(range(len(source))))


def numbers(source, last=200):
    """Which of the numbered pictures a split holds, in its order."""
    table = {pixels(number).tobytes(): number for number in range(last)}
    return [table[image.numpy().tobytes()] for image in everything(source)["image"]]


def test_splits_labels_and_captions_come_from_the_files(folder):
    data = open_data(folder)
    assert data.info.name == "data"
    assert data.info.class_names == ("a", "b", "c")
    assert data.info.has_captions
    train, val = data.split("train"), data.split("val")
    assert numbers(train) == list(range(10))
    assert numbers(val) == [100, 101, 102]
    batch = train.__getitems__([7, 2])
    assert batch["label"].tolist() == [1, 2]
    assert batch["caption"] == ["number 7", "number 2"]
    assert everything(val)["caption"] == ["x", "y", ""]


def test_info_decodes_nothing_and_writes_nothing(folder, monkeypatch):
    monkeypatch.setattr("ldmlab.data.opened.open_image", None)
    assert open_data(folder).info.num_classes == 3
    assert not (folder.parent / "cache").exists()


def test_files_in_other_subfolders_are_not_mixed_in(folder):
    write_parquet(folder / "lossless/train.parquet", pngs(2, 50))
    assert len(open_data(folder).split("train")) == 10


def test_split_takes_no_file_whose_first_word_only_begins_alike(folder):
    write_parquet(folder / "trainer.parquet", pngs(2, 50))
    assert numbers(open_data(folder).split("train")) == list(range(10))


def test_files_may_lie_in_a_subfolder_named_data(folder):
    assert numbers(open_data(folder.parent).split("val")) == [100, 101, 102]


def test_brackets_in_a_path_are_no_pattern(tmp_path):
    path = write_parquet(tmp_path / "set [64]" / "train.parquet", pngs(4))
    assert len(open_data(path.parent, val_fraction=0.25).split("train")) == 3


def test_single_file_holds_out_a_part(tmp_path):
    data = open_data(write_parquet(tmp_path / "anything.parquet", pngs(20)), val_fraction=0.25)
    train, val = numbers(data.split("train")), numbers(data.split("val"))
    assert len(val) == 5
    assert sorted(train + val) == list(range(20))
    assert train == sorted(train)


def test_labels_and_captions_of_a_held_out_part_belong_to_its_images(tmp_path):
    labels, captions = [str(row) for row in range(8)], [f"number {row}" for row in range(8)]
    data = open_data(write_parquet(tmp_path / "train.parquet", pngs(8), label=labels, text=captions), val_fraction=0.5)
    for name in ("train", "val"):
        source = data.split(name)
        assert everything(source)["label"].tolist() == numbers(source)
        assert everything(source)["caption"] == [f"number {number}" for number in numbers(source)]


def test_held_out_part_depends_on_the_seed_alone(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", pngs(20))
    held_out = [numbers(open_data(path, val_fraction=0.25, seed=seed).split("val")) for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_validation_split_is_preferred_to_test(folder):
    write_parquet(folder / "validation-00000-of-00001.parquet", pngs(2, 60), label=["a", "b"], caption=["", ""])
    assert numbers(open_data(folder).split("val")) == [60, 61]
    assert numbers(open_data(folder, val_split="test").split("val")) == [100, 101, 102]


def test_train_split_may_be_named(folder):
    assert numbers(open_data(folder, train_split="test", val_split="train").split("train")) == [100, 101, 102]


def test_limit_takes_the_first_images_of_each_split(folder):
    data = open_data(folder, limit=2)
    assert numbers(data.split("train")) == [0, 1]
    assert numbers(data.split("val")) == [100, 101]


def test_image_size_resizes(folder):
    assert open_data(folder, image_size=4).split("val").__getitems__([0])["image"].shape == (1, 3, 4, 4)


def test_flip_is_kept_for_the_data_module(folder):
    assert open_data(folder, flip=True).flip is True
    assert open_data(folder).flip is False


def test_columns_may_be_named(tmp_path):
    path = write_parquet(
        tmp_path / "train.parquet",
        pngs(4),
        {"photo": datasets.Image()},
        photo=[{"bytes": image, "path": None} for image in pngs(4, 30)],
        breed=["x", "y", "y", "x"],
        words=["p", "q", "r", "s"],
    )
    options = {"val_split": "train", "val_fraction": 0.25}
    plain = open_data(path, **options)
    assert (plain.info.class_names, plain.info.has_captions) == ((), False)
    assert numbers(plain.split("train")) == [0, 1, 2, 3]
    named = open_data(path, image_column="photo", label_column="breed", caption_column="words", **options)
    assert named.info.class_names == ("x", "y")
    assert numbers(named.split("train")) == [30, 31, 32, 33]
    assert everything(named.split("train"))["caption"] == ["p", "q", "r", "s"]


def test_labels_and_captions_may_be_left_out(folder):
    data = open_data(folder, label_column="none", caption_column="none")
    assert (data.info.class_names, data.info.has_captions) == ((), False)
    assert list(data.split("val").__getitems__([0])) == ["image"]


def test_string_labels_get_ids_in_alphabetical_order_from_both_splits(tmp_path):
    write_parquet(tmp_path / "d/train.parquet", pngs(3), label=["pear", "fig", "pear"])
    write_parquet(tmp_path / "d/test.parquet", pngs(2), label=["kiwi", "pear"])
    data = open_data(tmp_path / "d")
    assert data.info.class_names == ("fig", "kiwi", "pear")
    assert everything(data.split("train"))["label"].tolist() == [2, 0, 2]
    assert everything(data.split("val"))["label"].tolist() == [1, 2]


def test_integer_labels_become_contiguous_in_order_of_size(tmp_path):
    write_parquet(tmp_path / "d/train.parquet", pngs(3), label=[100, 7, 30])
    write_parquet(tmp_path / "d/val.parquet", pngs(1), label=[9])
    data = open_data(tmp_path / "d")
    assert data.info.class_names == ("7", "9", "30", "100")
    assert everything(data.split("train"))["label"].tolist() == [3, 0, 2]
    assert everything(data.split("val"))["label"].tolist() == [1]


def test_splits_that_number_their_classes_differently_agree_by_name(tmp_path):
    write_parquet(tmp_path / "d/train.parquet", pngs(2), {"label": datasets.ClassLabel(names=["b", "a"])}, label=[0, 1])
    write_parquet(tmp_path / "d/val.parquet", pngs(2), {"label": datasets.ClassLabel(names=["a", "z"])}, label=[0, 1])
    data = open_data(tmp_path / "d")
    assert data.info.class_names == ("a", "b", "z")
    assert everything(data.split("train"))["label"].tolist() == [1, 0]
    assert everything(data.split("val"))["label"].tolist() == [0, 2]


def test_file_without_hugging_face_types_is_read(tmp_path):
    image = pa.array([{"bytes": content, "path": None} for content in pngs(4)])
    pq.write_table(pa.table({"image": image, "label": ["u", "v", "u", "v"]}), tmp_path / "train.parquet")
    data = open_data(tmp_path / "train.parquet", val_split="train")
    assert numbers(data.split("train")) == [0, 1, 2, 3]
    assert data.info.class_names == ("u", "v")


def test_column_of_bare_bytes_is_read(tmp_path):
    pq.write_table(pa.table({"img": pa.array(pngs(4), pa.binary())}), tmp_path / "train.parquet")
    assert numbers(open_data(tmp_path / "train.parquet", val_split="train").split("train")) == [0, 1, 2, 3]


def test_corrupt_image_is_named_by_file_and_row(folder):
    images = pngs(5, 5)
    images[3] = CORRUPT
    write_parquet(
        folder / "train-00001-of-00002.parquet", images, {"label": ABC}, label=[0, 1, 2, 0, 1], caption=list("abcde")
    )
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet row 3 "):
        open_data(folder).split("train")


def test_corrupt_image_may_be_skipped(folder, caplog):
    write_parquet(folder / "test.parquet", [*pngs(1, 100), CORRUPT], {"label": ABC}, label=[2, 1], caption=["m", "n"])
    with caplog.at_level(logging.WARNING):
        val = open_data(folder, corrupt="skip").split("val")
    assert (len(val), everything(val)["label"].tolist()) == (1, [2])
    assert "test.parquet row 1" in caplog.text


def test_image_of_the_held_out_part_is_named_by_its_row_in_the_file(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [*pngs(9), CORRUPT])
    bad = [name for name in ("train", "val") if open_fails(open_data(path, val_fraction=0.5), name, "row 9")]
    assert len(bad) == 1


def open_fails(data, name, text):
    try:
        data.split(name)
    except UserError as error:
        return text in str(error)
    return False


@pytest.mark.parametrize("max_cache_gb", [8, 0])
def test_images_do_not_depend_on_the_cache(folder, max_cache_gb):
    source = open_data(folder, max_cache_gb=max_cache_gb).split("train")
    assert np.array_equal(source.__getitems__([6])["image"][0], pixels(6))


def test_second_use_reads_the_cache(folder, monkeypatch):
    open_data(folder).split("train")
    monkeypatch.setattr(ParquetImages, "load_table", None)
    assert numbers(open_data(folder).split("train")) == list(range(10))


def test_fingerprint_is_stable_and_moves_with_the_folder(folder):
    before = open_data(folder).info.fingerprint
    assert open_data(folder, flip=True, corrupt="skip", max_cache_gb=1).info.fingerprint == before
    assert open_data(folder.rename(folder.parent / "moved")).info.fingerprint == before


def test_fingerprint_changes_with_content_of_the_same_length(folder):
    before = open_data(folder).info.fingerprint
    old = picture(100)
    path = folder / "test.parquet"
    content = path.read_bytes()
    start = content.index(png(old)) + 60
    path.write_bytes(content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :])
    assert open_data(folder).info.fingerprint != before


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 4},
        {"limit": 2},
        {"label_column": "none"},
        {"caption_column": "none"},
        {"val_split": "train"},
        {"train_split": "test"},
    ],
)
def test_fingerprint_changes_with_options_that_change_the_data(folder, options):
    assert open_data(folder, **options).info.fingerprint != open_data(folder).info.fingerprint


def test_fingerprint_of_a_held_out_part_changes_with_fraction_and_seed(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", pngs(10))
    options = [{}, {"seed": 1}, {"val_fraction": 0.2}]
    assert len({open_data(path, **chosen).info.fingerprint for chosen in options}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "foto"}, r"data\.image_column: no column 'foto' .*columns: image, label, caption"),
        ({"label_column": "lable"}, r"data\.label_column: no column 'lable'"),
        ({"caption_column": "txt"}, r"data\.caption_column: no column 'txt'"),
        ({"caption_column": "label"}, r"data\.caption_column: column 'label' .*not text"),
        ({"label_column": "image"}, r"data\.label_column: column 'image' .*no class labels"),
        ({"image_column": "label"}, r"data\.image_column: column 'label' .*images are: image"),
        ({"train_split": "training"}, r"data\.train_split: no split 'training' .*found: test, train"),
        ({"val_split": "eval"}, r"data\.val_split: no split 'eval' .*found: test, train"),
        ({"corrupt": "ignore"}, r"data\.corrupt=ignore: choose stop or skip"),
        ({"image_size": 0}, r"data\.image_size=0"),
        ({"limit": 0}, r"data\.limit=0"),
        ({"val_fraction": 1.0}, r"data\.val_fraction=1\.0"),
    ],
)
def test_wrong_option_is_named_in_one_line(folder, options, message):
    with pytest.raises(UserError, match=message) as caught:
        _ = open_data(folder, **options).info
    assert "\n" not in str(caught.value)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: no such folder: .*/x \(give the folder that holds train"):
        _ = ParquetImages(path=str(tmp_path / "x"), image_size=8, cache_dir=str(tmp_path)).info


def test_folder_without_parquet_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: no \*\.parquet files in"):
        _ = open_data(tmp_path).info


def test_table_without_images_is_an_error(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"data\.image_column: no column of images"):
        _ = open_data(tmp_path / "train.parquet").info


def test_table_without_rows_is_an_error(tmp_path):
    write_parquet(tmp_path / "train.parquet", pngs(1))
    empty = pq.read_table(tmp_path / "train.parquet").slice(0, 0)
    pq.write_table(empty, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"data\.path: no images in split 'train'"):
        _ = open_data(tmp_path / "train.parquet").info
    write_parquet(tmp_path / "train-2.parquet", pngs(4))
    assert numbers(open_data(tmp_path, val_split="train").split("train")) == [0, 1, 2, 3]


def test_single_image_cannot_be_shared_out(tmp_path):
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.05: 1 images .*too few"):
        open_data(write_parquet(tmp_path / "train.parquet", pngs(1))).split("train")


@pytest.mark.parametrize("damage", ["no parquet", "cut"])
def test_damaged_file_is_named_before_work_starts(folder, damage):
    path = folder / "test.parquet"
    content = path.read_bytes()
    path.write_bytes(b"hello" if damage == "no parquet" else content[: len(content) // 2])
    with pytest.raises(UserError, match=r"data\.path: cannot read .*/test\.parquet, .*download it again") as caught:
        _ = open_data(folder).info
    assert "\n" not in str(caught.value)


def test_damage_inside_a_file_ends_in_one_line(folder):
    path = folder / "test.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(600) + content[604:])
    with pytest.raises(UserError, match=r"cannot read .*data: ") as caught:
        open_data(folder).split("val")
    assert "\n" not in str(caught.value)


def test_column_that_only_train_has_is_an_error(folder):
    write_parquet(folder / "test.parquet", pngs(3), {"label": ABC}, label=[0, 1, 2])
    with pytest.raises(UserError, match=r"data\.caption_column: column 'caption' .*missing in split 'test'"):
        _ = open_data(folder).info


@pytest.mark.parametrize("labels", [[0, -1, 2], [0, None, 2]])
def test_rows_without_label_are_counted_in_an_error(folder, labels):
    write_parquet(folder / "test.parquet", pngs(3), {"label": ABC}, label=labels, caption=list("abc"))
    with pytest.raises(UserError, match=r"data\.label_column: 1 of 3 rows .*'test'.*label_column=none"):
        open_data(folder).split("val")


def test_fractions_are_no_labels(tmp_path):
    write_parquet(tmp_path / "train.parquet", pngs(3), label=[0.5, 1.0, 2.0])
    with pytest.raises(UserError, match=r"data\.label_column: .*0\.5"):
        _ = open_data(tmp_path / "train.parquet").info


def test_another_split_name_is_a_programming_error(folder):
    with pytest.raises(ValueError, match="train"):
        open_data(folder).split("test")
