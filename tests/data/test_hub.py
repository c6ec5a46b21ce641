import os

import datasets
import pytest
from image_files import picture, pixels, png, pngs, write_parquet

from ldmlab.data.hub import HubImages
from ldmlab.errors import UserError


@pytest.fixture
def repository(tmp_path):
    """A folder in the Hub's layout, which the library opens in the same way as an address."""
    write_parquet(tmp_path / "toy/data/train-00000-of-00001.parquet", pngs(4), label=["x", "y", "x", "y"])
    write_parquet(tmp_path / "toy/data/test-00000-of-00001.parquet", pngs(2, 10), label=["y", "z"])
    return tmp_path / "toy"


def open_data(name, tmp_path, **options):
    return HubImages(name=str(name), **{"image_size": 8, "cache_dir": str(tmp_path / "cache"), **options})


def test_splits_and_labels_come_from_the_repository(repository, tmp_path):
    data = open_data(repository, tmp_path)
    assert data.info.class_names == ("x", "y", "z")
    batch = data.split("val").__getitems__([1, 0])
    assert batch["label"].tolist() == [2, 1]
    assert (batch["image"][0].numpy() == pixels(11)).all()
    assert len(data.split("train")) == 4


def test_fingerprint_is_stable_and_follows_the_content(repository, tmp_path):
    before = open_data(repository, tmp_path).info.fingerprint
    assert open_data(repository, tmp_path).info.fingerprint == before
    write_parquet(repository / "data/test-00000-of-00001.parquet", pngs(2, 20), label=["y", "z"])
    assert open_data(repository, tmp_path).info.fingerprint != before


def test_fingerprint_follows_the_splits_in_use(repository, tmp_path):
    options = [{}, {"val_split": "train"}, {"train_split": "test", "val_split": "train"}]
    assert len({open_data(repository, tmp_path, **chosen).info.fingerprint for chosen in options}) == 3


def test_classes_of_a_data_set_with_a_card_are_known_before_the_download(repository, tmp_path, monkeypatch):
    (repository / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n"
        "      class_label:\n        names:\n          '0': cat\n          '1': dog\n"
        "  splits:\n  - name: train\n    num_examples: 4\n  - name: test\n    num_examples: 2\n---\n"
    )
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert open_data(repository, tmp_path).info.class_names == ("cat", "dog")


def test_configuration_and_revision_reach_the_library(tmp_path, monkeypatch):
    table = datasets.Dataset.from_dict({"image": [{"bytes": png(picture(1)), "path": None}] * 4})
    calls = []

    class Builder:
        info, config_id, hash = datasets.DatasetInfo(), "large", "1234"

    def load(path, name, **options):
        calls.append((path, name, options["revision"]))
        return datasets.DatasetDict(train=table.cast_column("image", datasets.Image()))

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda **options: Builder)
    monkeypatch.setattr(datasets, "load_dataset", load)
    data = open_data("owner/toy", tmp_path, config="large", revision="v1", val_fraction=0.25)
    assert data.info.name == "owner/toy"
    assert (len(data.split("train")), len(data.split("val"))) == (3, 1)
    assert calls == [("owner/toy", "large", "v1")]


def test_corrupt_image_is_named_by_split_and_row(repository, tmp_path):
    write_parquet(repository / "data/test-00000-of-00001.parquet", [*pngs(1), b"broken"], label=["y", "z"])
    with pytest.raises(UserError, match=r"split test row 1 "):
        open_data(repository, tmp_path).split("val")


def test_missing_split_is_named(repository, tmp_path):
    with pytest.raises(UserError, match=r"data\.val_split: no split 'eval' in data\.name=.*found: "):
        _ = open_data(repository, tmp_path, val_split="eval").info


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'owner/toy' doesn't exist\non the Hub"),
        ConnectionError("Couldn't reach 'owner/toy' on the Hub"),
        ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']"),
    ],
)
def test_what_the_hub_refuses_ends_in_one_line(tmp_path, monkeypatch, error):
    def refuse(**options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(UserError, match=r"cannot read data\.name=owner/toy: ") as caught:
        _ = open_data("owner/toy", tmp_path).info
    assert "\n" not in str(caught.value)


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("LDMLAB_NETWORK") != "1", reason="downloads; set LDMLAB_NETWORK=1")
def test_mnist_from_the_hub(tmp_path):
    data = open_data("ylecun/mnist", tmp_path, image_size=28, limit=100)
    assert data.info.num_classes == 10
    assert data.split("val").__getitems__([0, 99])["image"].shape == (2, 3, 28, 28)
