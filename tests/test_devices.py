"""Processes that share a machine's GPUs."""

import os

import pytest

from ldmlab import devices


@pytest.fixture(autouse=True)
def _as_a_new_process(monkeypatch):
    monkeypatch.setattr(devices, "HELD", [])
    # so that what a test sets is put back
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def taken(count, folder):
    return devices.take_a_gpu(lambda: count, folder)


def test_each_process_takes_one_of_its_own(tmp_path, monkeypatch):
    found = []
    others = []
    for _ in range(3):
        found.append(taken(2, tmp_path))
        others.append(devices.HELD)
        monkeypatch.setattr(devices, "HELD", [])
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    assert found == [0, 1, None]


def test_it_sees_no_other(tmp_path):
    assert taken(4, tmp_path) == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert taken(4, tmp_path) is None  # its next job stays there
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_choice_made_already_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert taken(4, tmp_path) is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize("count", [0, 1])
def test_where_there_is_nothing_to_share_nothing_changes(tmp_path, count):
    assert taken(count, tmp_path) is None
    assert list(tmp_path.iterdir()) == []
