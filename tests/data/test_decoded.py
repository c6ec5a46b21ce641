import errno
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from image_files import CORRUPT, pixels, pngs

from ldmlab.data import decoded
from ldmlab.data.decoded import DecodedImages, ImagesOnDemand, open_split
from ldmlab.errors import UserError


class Encoded:
    """An encoded split in memory that counts its reads."""

    def __init__(self, images, labels=None, captions=None):
        self.images, self.labels, self.captions, self.reads = images, labels, captions, 0
        self.semantic = self.boxes = None

    def __len__(self):
        return len(self.images)

    def read(self, rows):
        self.reads += 1
        return [self.images[row] for row in rows]

    def describe(self, row):
        return f"images.bin row {row}"


def full(count=6, bad=()):
    images = pngs(count)
    for row in bad:
        images[row] = CORRUPT
    return Encoded(images, np.arange(count, dtype=np.int64) % 3, [f"number {row}" for row in range(count)])


def open_it(encoded, folder, **options):
    return open_split(lambda: encoded, key="key", title="toy train", image_size=8, cache_dir=folder, **options)


def files_below(folder):
    """All files but the locks, which stay: a lock that is deleted may be held by two."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


MODES = pytest.mark.parametrize("options", [{}, {"max_cache_gb": 0}], ids=["cached", "on demand"])


@MODES
def test_batch_has_the_images_labels_and_captions_asked_for(tmp_path, options):
    source = open_it(full(), tmp_path, **options)
    batch = source.__getitems__([4, 0, 4])
    assert len(source) == 6
    assert batch["image"].dtype == torch.float32
    assert np.array_equal(batch["image"], np.stack([pixels(4), pixels(0), pixels(4)]))
    assert batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [1, 0, 1]
    assert batch["caption"] == ["number 4", "number 0", "number 4"]


@MODES
def test_batch_without_labels_and_captions_has_images_alone(tmp_path, options):
    source = open_it(Encoded(pngs(3)), tmp_path, **options)
    assert list(source.__getitems__([0])) == ["image"]


def test_small_split_is_cached_and_large_one_is_not(tmp_path):
    assert isinstance(open_it(full(), tmp_path / "a"), DecodedImages)
    nbytes = 6 * 3 * 8 * 8
    assert isinstance(open_it(full(), tmp_path / "b", max_cache_gb=nbytes / 1e9), DecodedImages)
    assert isinstance(open_it(full(), tmp_path / "c", max_cache_gb=(nbytes - 1) / 1e9), ImagesOnDemand)
    assert files_below(tmp_path / "a")
    assert not files_below(tmp_path / "c")


def test_second_use_decodes_nothing(tmp_path):
    open_it(full(), tmp_path)

    def load():
        raise AssertionError("the encoded images were asked for")

    source = open_split(load, key="key", title="toy", image_size=8, cache_dir=tmp_path)
    assert np.array_equal(source.__getitems__([3])["image"][0], pixels(3))


@MODES
def test_corrupt_image_stops_in_one_line_that_names_it(tmp_path, options):
    with pytest.raises(UserError, match=r"images\.bin row 2 .*data\.corrupt=skip") as caught:
        open_it(full(bad=[2]), tmp_path, **options).__getitems__([1, 2])
    assert "\n" not in str(caught.value)
    assert not files_below(tmp_path)


@MODES
def test_corrupt_images_are_left_out_with_a_warning(tmp_path, caplog, options):
    with caplog.at_level(logging.WARNING):
        source = open_it(full(bad=[0, 3]), tmp_path, corrupt="skip", **options)
    assert len(source) == 4
    batch = source.__getitems__([0, 1, 2, 3])
    assert np.array_equal(batch["image"], np.stack([pixels(row) for row in (1, 2, 4, 5)]))
    assert batch["label"].tolist() == [1, 2, 1, 2]
    assert batch["caption"] == ["number 1", "number 2", "number 4", "number 5"]
    (record,) = caplog.records
    assert "2 corrupt images left out" in record.getMessage()
    assert "row 0" in record.getMessage()
    assert "row 3" in record.getMessage()


def test_warning_names_ten_and_counts_the_rest(tmp_path, caplog):
    open_it(full(20, bad=range(13)), tmp_path, corrupt="skip")
    message = caplog.messages[0]
    assert message.count("images.bin row") == 10
    assert message.endswith("; and 3 more")


def test_warning_comes_again_with_the_cache(tmp_path, caplog):
    for _ in range(2):
        open_it(full(bad=[1]), tmp_path, corrupt="skip")
    assert len(caplog.messages) == 2


def test_stop_does_not_accept_a_cache_that_skip_made(tmp_path):
    open_it(full(bad=[1]), tmp_path, corrupt="skip")
    with pytest.raises(UserError, match=r"images\.bin row 1 \(not an image"):
        open_it(full(bad=[1]), tmp_path)


def test_missing_and_truncated_images_count_as_corrupt(tmp_path, caplog):
    images = pngs(4)
    images[1], images[2] = None, images[2][: len(images[2]) // 2]
    assert len(open_it(Encoded(images), tmp_path, corrupt="skip")) == 2
    assert "row 1 (the row holds no image)" in caplog.messages[0]


def test_split_of_corrupt_images_alone_is_an_error(tmp_path):
    with pytest.raises(UserError, match="none of the 3 images"):
        open_it(full(3, bad=range(3)), tmp_path, corrupt="skip")


def test_images_on_demand_are_checked_once(tmp_path):
    first, second = full(bad=[1]), full(bad=[1])
    open_it(first, tmp_path, corrupt="skip", max_cache_gb=0)
    assert len(open_it(second, tmp_path, corrupt="skip", max_cache_gb=0)) == 5
    assert second.reads == 0


def test_interruption_leaves_nothing_and_the_next_use_builds_anew(tmp_path, monkeypatch):
    def interrupt(image, size):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoded, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_it(full(), tmp_path)
    assert not files_below(tmp_path)
    assert len(open_it(full(), tmp_path)) == 6


def test_rest_of_a_killed_process_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    host = os.uname().nodename
    dead = tmp_path / "images" / f".building-key-{host}-{process.pid}-abc"
    alive = tmp_path / "images" / f".building-key-{host}-{os.getpid()}-abc"
    for folder in (dead, alive):
        folder.mkdir(parents=True)
    open_it(full(), tmp_path)
    assert not dead.exists()
    assert alive.exists()


def test_two_that_open_at_once_both_get_the_images_and_one_decodes_them(tmp_path, monkeypatch):
    build, builders, sources = decoded._build, [], []

    def build_slowly(*arguments):
        builders.append(threading.current_thread())
        time.sleep(0.2)
        build(*arguments)

    monkeypatch.setattr(decoded, "_build", build_slowly)
    threads = [threading.Thread(target=lambda: sources.append(open_it(full(), tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(source) for source in sources] == [6, 6]
    assert len(builders) == 1
    assert sorted(os.listdir(tmp_path / "images")) == [".key.lock", "key"]


def test_too_little_space_is_found_before_work_starts(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 100))
    encoded = full()
    with pytest.raises(UserError, match=r"cache_dir: 1\.15e-06 GB needed in .*images.*max_cache_gb=0") as caught:
        open_it(encoded, tmp_path)
    assert "\n" not in str(caught.value)
    assert encoded.reads == 0


def test_disk_that_fills_meanwhile_ends_in_a_user_error(tmp_path, monkeypatch):
    def no_space(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(UserError, match="needed in"):
        open_it(full(), tmp_path)
    assert not files_below(tmp_path)


def test_cache_dir_that_is_a_file_ends_in_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cache_dir: cannot write in"):
        open_it(full(), tmp_path / "file")


def test_worker_processes_receive_the_name_of_the_cache_not_its_content(tmp_path):
    source = open_it(full(400), tmp_path)
    source._captions = None
    content = pickle.dumps(source)
    assert len(content) < 10_000
    assert np.array_equal(pickle.loads(content).__getitems__([7])["image"][0], pixels(7))


def test_index_beyond_the_end_is_an_index_error(tmp_path):
    with pytest.raises(IndexError):
        open_it(full(), tmp_path).__getitems__([6])
