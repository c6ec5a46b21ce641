import os

import pytest

from ldmlab.data import fingerprint
from ldmlab.data.fingerprint import digest_files


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(bytes(300_000))
    return paths


def change(path, position):
    """Change one byte but neither the size nor the time."""
    state = path.stat()
    with open(path, "r+b") as stream:
        stream.seek(position)
        stream.write(b"x")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_order_of_the_files_does_not_matter_and_their_place_neither(files, tmp_path):
    before = digest_files(files, tmp_path)
    assert digest_files(files[::-1], tmp_path) == before
    (tmp_path / "moved").mkdir()
    moved = [path.rename(tmp_path / "moved" / path.name) for path in files]
    assert digest_files(moved, tmp_path / "moved") == before


@pytest.mark.parametrize("position", [0, 150_000, 299_999])
def test_any_byte_counts(files, tmp_path, position):
    before = digest_files(files, tmp_path)
    change(files[1], position)
    assert digest_files(files, tmp_path) != before


@pytest.mark.parametrize(("position", "seen"), [(0, True), (150_000, False), (299_999, True)])
def test_both_ends_count_in_large_sets(files, tmp_path, monkeypatch, position, seen):
    monkeypatch.setattr(fingerprint, "WHOLE_CONTENT_BYTES", 500_000)
    before = digest_files(files, tmp_path)
    change(files[1], position)
    assert (digest_files(files, tmp_path) != before) == seen


@pytest.mark.parametrize("sampled", [0, 10])
def test_time_counts_in_large_sets(files, tmp_path, monkeypatch, sampled):
    monkeypatch.setattr(fingerprint, "WHOLE_CONTENT_BYTES", 500_000)
    monkeypatch.setattr(fingerprint, "SAMPLED_FILES", sampled)
    before = digest_files(files, tmp_path)
    os.utime(files[0], ns=(1, 1))
    assert digest_files(files, tmp_path) != before


def test_name_and_size_count(files, tmp_path):
    prints = [digest_files(files, tmp_path)]
    files[0] = files[0].rename(tmp_path / "c")
    prints.append(digest_files(files, tmp_path))
    files[0].write_bytes(bytes(300_001))
    prints.append(digest_files(files, tmp_path))
    assert len(set(prints)) == 3
