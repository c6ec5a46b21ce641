"""Folders of a cache are made once, whoever wants them at the same time."""

import threading
import time

import pytest

from ldmlab.data.cache_folder import make_once, new_folder


def test_of_two_that_want_a_folder_one_makes_it_and_the_other_waits(tmp_path):
    folder, made = tmp_path / "cache" / "latents", []

    def make():
        with new_folder(folder, 0) as building:
            made.append(threading.current_thread().name)
            time.sleep(0.3)
            (building / "content").write_text("whole")

    found = []

    def want():
        make_once(folder, make)
        found.append((folder / "content").read_text())

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert found == ["whole"] * 3


def test_what_fails_is_left_to_the_next_one(tmp_path):
    folder = tmp_path / "latents"

    def fail():
        with new_folder(folder, 0):
            raise ValueError("not this time")

    with pytest.raises(ValueError, match="not this time"):
        make_once(folder, fail)

    def make():
        with new_folder(folder, 0):
            pass

    make_once(folder, make)
    assert folder.is_dir()
